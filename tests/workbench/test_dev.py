"""dev.py: what it installs, what it unpacks, and what it says when something is wrong."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from workbench.dev import base, comfyui, environment, server, steps
from workbench.dev.steps import SetupError


def archive_of(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def fake_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").touch()
    (folder / "comfyui_version.py").write_text('# made by hand\n__version__ = "9.8.7"\n')
    return folder


# Packaging.


def in_section(pyproject: str, section: str) -> str:
    """Text of a section. tomllib came with Python 3.11, and the pack runs on 3.10."""
    found = re.search(rf"^\[{re.escape(section)}\]\n(.*?)(?=^\[)", pyproject, re.MULTILINE | re.DOTALL)
    assert found, f"no [{section}]"
    return found[1]


def test_pyproject_depends_on_exactly_what_requirements_txt_lists(repo_root: Path) -> None:
    project = in_section((repo_root / "pyproject.toml").read_text(encoding="utf-8"), "project")
    listed = re.search(r"^dependencies = (\[.*?^\])", project, re.MULTILINE | re.DOTALL)
    assert listed
    requirements = (repo_root / "requirements.txt").read_text(encoding="utf-8").split()
    assert ast.literal_eval(listed[1]) == requirements


def test_pyproject_has_the_version_of_the_package(repo_root: Path) -> None:
    import in_graph_lora

    project = in_section((repo_root / "pyproject.toml").read_text(encoding="utf-8"), "project")
    assert f'version = "{in_graph_lora.__version__}"\n' in project


def test_requirements_leave_comfyuis_own_packages_alone(repo_root: Path) -> None:
    requirements = (repo_root / "requirements.txt").read_text(encoding="utf-8")
    names = {re.split(r"[<>=~! ]", line)[0] for line in requirements.split()}
    assert not names & {"torch", "torchvision", "numpy", "pillow", "transformers", "safetensors"}
    assert "==" not in requirements
    assert "<" not in requirements


# dev.py itself.


def test_old_python_is_told_in_one_sentence(repo_root: Path) -> None:
    source = (repo_root / "dev.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    pretend = f"import sys; sys.version_info = (3, 8, 1); sys.argv = ['dev.py', 'test']\n{source}"
    done = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        1,
        "In-Graph LoRA needs Python 3.10 or newer; this is Python 3.8.\n",
    )


def test_dev_tools_import_only_the_standard_library(repo_root: Path) -> None:
    # These run beside ComfyUI, in .venv or on a machine for GPU tests.
    beside = ("host.py", "stand_ins.py")
    files = [path for path in (repo_root / "workbench" / "dev").glob("*.py") if path.name not in beside]
    for file in [repo_root / "dev.py", *files]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            outside = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"workbench"}
            assert not outside, f"{file.name} imports {outside}"


def test_unknown_command_lists_the_commands(repo_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, repo_root / "dev.py", "deploy"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert all(command in done.stderr for command in ("demo", "test", "server", "lint", "bench"))


# Finding ComfyUI.


def test_wrong_comfyui_path_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match=f"COMFYUI_PATH is {re.escape(str(tmp_path))}"):
        comfyui.find()


def test_comfyui_path_is_used_when_it_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = fake_comfyui(tmp_path / "elsewhere")
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    assert comfyui.find() == folder
    assert comfyui.version(folder) == "9.8.7"


def test_comfyui_around_the_pack_comes_before_comfyui_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    around = fake_comfyui(tmp_path / "around")
    monkeypatch.setattr(comfyui, "ROOT", around / "custom_nodes" / "in-graph-lora")
    monkeypatch.setenv("COMFYUI_PATH", str(fake_comfyui(tmp_path / "other")))
    assert comfyui.find() == around


# The archive.


def test_archive_with_another_hash_is_refused_and_deleted(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"not it")
    with pytest.raises(SetupError, match=hashlib.sha256(b"not it").hexdigest()):
        comfyui.check(archive, "0" * 64)
    assert not archive.exists()


def test_unpacking_takes_plain_files_below_the_folder_and_nothing_else(tmp_path: Path) -> None:
    archive = archive_of(
        tmp_path / "a.tar.gz",
        {"p/vendor/C/main.py": b"1", "p/vendor/C/comfy/x.py": b"2", "p/other.py": b"3"},
        links={"p/vendor/C/link": "/etc/passwd"},
    )
    comfyui.unpack(archive, "p/vendor/C", tmp_path / "C")
    unpacked = {str(path.relative_to(tmp_path)) for path in (tmp_path / "C").rglob("*") if path.is_file()}
    assert unpacked == {os.path.join("C", "main.py"), os.path.join("C", "comfy", "x.py")}


def test_archive_that_reaches_outside_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", {"C/ok.py": b"1", "C/../../evil.py": b"2"})
    (tmp_path / "cache").mkdir()
    with pytest.raises(SetupError, match="outside"):
        comfyui.unpack(archive, "C", tmp_path / "cache" / "C")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.tar.gz"]


def test_unpacking_again_after_an_interruption_clears_the_leftovers(tmp_path: Path) -> None:
    leftover = tmp_path / "C.part-x"
    leftover.mkdir()
    (leftover / "half").touch()
    comfyui.unpack(archive_of(tmp_path / "a.tar.gz", {"C/main.py": b"1"}), "C", tmp_path / "C")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["C", "a.tar.gz"]


def test_damaged_archive_is_named(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", {"C/main.py": os.urandom(4096)})
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(SetupError, match="damaged"):
        comfyui.unpack(archive, "C", tmp_path / "C")
    assert not (tmp_path / "C").exists()


# Steps that fail.


def test_failed_step_is_one_sentence_with_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(steps, "LOGS", tmp_path)
    script = "print('OSError: [Errno 28] No space left on device'); raise SystemExit(3)"
    with pytest.raises(SetupError) as failed:
        steps.run_logged([sys.executable, "-c", script], log="step", failure="The step failed")
    assert str(failed.value) == f"The step failed: the disk is full (log: {tmp_path / 'step.log'})"
    assert "No space left" in (tmp_path / "step.log").read_text()


def test_server_that_dies_is_reported_with_its_last_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "_device_flags", lambda python: [])
    dying = fake_comfyui(tmp_path / "dying")
    (dying / "main.py").write_text("raise SystemExit('OSError: address already in use')")
    with pytest.raises(SetupError, match=r"ended with code 1 .* port was taken"):
        server.start(Path(sys.executable), dying, tmp_path, log=tmp_path / "log")


def test_pack_that_cannot_be_imported_is_noticed_with_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Import times for custom nodes:\n   0.1 seconds: /x/custom_nodes/in-graph-lora\n")
    assert server.import_failure(log) is None
    log.write_text(
        "Cannot import /x/custom_nodes/in-graph-lora module for custom nodes: No module named 'peft'\n"
        "   0.1 seconds (IMPORT FAILED): /x/custom_nodes/in-graph-lora\n"
    )
    assert "No module named 'peft'" in (server.import_failure(log) or "")


def test_free_port_can_be_bound() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", server.free_port()))


# The environment.


@pytest.fixture
def empty_venv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[Path]]:
    """A .venv whose installations are only noted down."""
    venv = tmp_path / ".venv"
    venv.mkdir()
    monkeypatch.setattr(environment, "VENV", venv)
    monkeypatch.setattr(environment, "STAMP", venv / "stamp.json")
    monkeypatch.setattr(environment, "INSTALLING", venv / "installing")
    installed: list[list[Path]] = []
    monkeypatch.setattr(environment, "_install", lambda files: installed.append(list(files)))
    return installed


def test_second_set_up_installs_nothing(empty_venv: list[list[Path]], tmp_path: Path) -> None:
    comfy = fake_comfyui(tmp_path / "C")
    for _ in range(2):
        environment.install(comfy, dev=True)
        environment.install(comfy, dev=False)
    assert len(empty_venv) == 1


def test_changed_requirements_are_installed(empty_venv: list[list[Path]], tmp_path: Path) -> None:
    comfy = fake_comfyui(tmp_path / "C")
    environment.install(comfy, dev=False)
    (comfy / "requirements.txt").write_text("einops\n")
    environment.install(comfy, dev=False)
    assert len(empty_venv) == 2


def test_interrupted_installation_starts_with_a_new_venv(
    empty_venv: list[list[Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(files: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "_install", stop)
    with pytest.raises(KeyboardInterrupt):
        environment.install(fake_comfyui(tmp_path / "C"), dev=False)
    half = environment.VENV / "half-installed"
    half.touch()
    monkeypatch.setattr(environment, "run_logged", lambda *a, **k: environment.VENV.mkdir())
    environment.make()
    assert not half.exists()


# The base directory.


def test_base_directory_links_to_the_pack_and_is_made_again_without_harm(
    repo_root: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        base.prepare(tmp_path)
    assert (tmp_path / "custom_nodes" / "in-graph-lora").resolve() == repo_root
    assert (tmp_path / "models" / "checkpoints").is_dir()


def test_link_to_a_pack_that_was_moved_is_renewed(repo_root: Path, tmp_path: Path) -> None:
    base.prepare(tmp_path)
    link = tmp_path / "custom_nodes" / "in-graph-lora"
    link.unlink()
    link.symlink_to(tmp_path / "gone", target_is_directory=True)
    base.prepare(tmp_path)
    assert link.resolve() == repo_root
