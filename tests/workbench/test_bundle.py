"""dev.py bundle and dev.py gpu: what is chosen, how large it may get, and that a second call goes on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from workbench.bench import gpu_table, plan
from workbench.bench import streaming as ring_table
from workbench.dev import bundle, gpu, stand_ins
from workbench.dev.results import Results
from workbench.dev.steps import SetupError

NEEDED = {
    "torch": "torch==2.11", "numpy": "numpy==2", "pillow": "pillow==12", "peft": "peft==0.21",
    "diffusers": "diffusers==0.42", "comfy-kitchen": "comfy-kitchen==0.2", "scipy": "scipy==1.18",
    "pytest": "pytest==9",
}  # fmt: skip


class Resolver:
    """As the real one, without the index."""

    asked: list[list[str]]

    def __init__(self, python: Path, version: str) -> None:
        Resolver.asked = []

    def closure(self, roots: Any) -> dict[str, str]:
        Resolver.asked.append([bundle.name_of(root) for root in roots])
        everything = len(Resolver.asked) > 1
        return NEEDED if everything else {name: NEEDED[name] for name in ("torch", "numpy", "pillow", "peft")}

    def download(self, pins: Any, folder: Path) -> None:
        for pin in pins:
            name = pin.partition("==")[0].replace("-", "_")
            with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
                files = {f"{name}/__init__.py": "", f"{name}/_C.abi3.so": "x" * 1000}
                record = "".join(f"{file},,\n" for file in files) + f"{name}-1.dist-info/RECORD,,\n"
                for file, content in {**files, f"{name}-1.dist-info/RECORD": record}.items():
                    wheel.writestr(file, content)


@pytest.fixture
def comfy(tmp_path: Path) -> Path:
    folder = tmp_path / "some" / "ComfyUI"
    for name in ("comfy/sd.py", "comfy/__pycache__/sd.pyc", "tests/test.py", "models/x", "main.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "comfyui_version.py").write_text('__version__ = "0.30.0"')
    wanted = "torch\nscipy\nav>=16\nSQLAlchemy>=2\ncomfy-kitchen==0.2 # kernels\n\n#non essential:\nkornia\n"
    (folder / "requirements.txt").write_text(wanted)
    return folder


@pytest.fixture
def made(comfy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bundle, "Resolver", Resolver)
    bundle.collect(tmp_path / "made", Path(sys.executable), comfy, "3.12")
    return tmp_path / "made"


def test_a_bundle_holds_what_is_needed_less_what_is_expected_and_what_is_left_out(made, capsys) -> None:
    wheels = {path.name.partition("-")[0] for path in (made / "wheels").iterdir()}
    assert wheels == {"diffusers", "comfy_kitchen", "pytest"}
    assert Resolver.asked[0] == list(bundle.EXPECTED)
    assert Resolver.asked[1] == ["torch", "comfy-kitchen", "peft", "diffusers", "pytest", "pytest-timeout"]
    about = json.loads((made / "bundle.json").read_text())
    assert set(about["left out"]) == {"scipy", "av", "sqlalchemy", "kornia"}
    assert (made / "expected.txt").read_text().split() == ["numpy", "peft", "pillow", "torch"]


def test_comfyui_and_the_pack_are_in_it_without_what_no_test_reads(made: Path) -> None:
    with tarfile.open(made / "ComfyUI.tar.xz") as tar:
        files = {info.name for info in tar if info.isfile()}
    assert files == {f"ComfyUI/{name}" for name in
                     ("comfy/sd.py", "main.py", "comfyui_version.py", "requirements.txt")}  # fmt: skip
    assert (made / "pack" / "dev.py").exists()
    assert (made / "pack" / "tests" / "gpu" / "conftest.py").exists()
    assert not list((made / "pack").rglob("*.safetensors"))


def test_a_trimmed_wheel_lists_what_it_holds(made: Path) -> None:
    (wheel,) = (made / "wheels").glob("comfy_kitchen*")
    with zipfile.ZipFile(wheel) as whole:
        record = whole.read("comfy_kitchen-1.dist-info/RECORD").decode()
        assert {line.partition(",")[0] for line in record.splitlines()} == set(whole.namelist())
        assert not any(name.endswith(".so") for name in whole.namelist())


def test_a_bundle_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.whl").write_bytes(bytes(3 * 2**20))
    bundle.check_size(tmp_path, most=3 * 2**20)
    with pytest.raises(SetupError, match=r"has 3\.0 MiB and may have 2; the largest.*large\.whl 3\.0"):
        bundle.check_size(tmp_path, most=2 * 2**20)


def test_a_folder_with_something_else_in_it_is_left_alone(made: Path, comfy: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no bundle"):
        bundle.collect(comfy, Path(sys.executable), comfy, "3.12")
    assert (comfy / "main.py").exists()
    (made / "wheels" / "old.whl").touch()
    bundle.collect(made, Path(sys.executable), comfy, "3.12")
    assert not (made / "wheels" / "old.whl").exists()


def test_every_requirement_that_is_left_out_is_one_of_comfyuis(comfyui: Path) -> None:
    names = {bundle.name_of(line) for line in bundle.requirements(comfyui)}
    assert set(bundle.LEFT_OUT) <= names, "a name that ComfyUI no longer asks for has to go"


# The machine.


def about(**changes: Any) -> dict[str, Any]:
    own = ".".join(map(str, sys.version_info[:2]))
    return {"python": own, "expected": list(bundle.EXPECTED), **changes}


def test_a_machine_is_told_what_does_not_fit() -> None:
    gpu.check_machine(about())
    with pytest.raises(SetupError, match=r"made for Python 9\.9"):
        gpu.check_machine(about(python="9.9"))
    with pytest.raises(SetupError, match="lacks no-such-package"):
        gpu.check_machine(about(expected=["torch", "no-such-package"]))


def test_a_missing_package_can_be_imported_and_says_so_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stand_ins, "NAMES", ("torch", "in_no_index"))
    monkeypatch.setattr(stand_ins, "_let_others_look", lambda missing: None)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    assert stand_ins.install() == ["in_no_index"]
    import in_no_index.deep.er as stand_in  # type: ignore[import-not-found]

    with pytest.raises(ImportError, match=r"in_no_index\.deep\.er\.f\.g was called.*in_no_index is not on"):
        stand_in.f.g(1)
    assert not hasattr(stand_in, "__version__")
    for name in [name for name in sys.modules if name.startswith("in_no_index")]:
        del sys.modules[name]
    assert importlib.util.find_spec("torch") is not None


# The run.


def item(title: str, code: str, limit: float = 20) -> gpu.Item:
    return gpu.Item(title, ["-c", code], limit, lambda results: results.done(title))


def env(path: Path) -> dict[str, str]:
    return {"IGL_RESULTS": str(path), "PYTHONPATH": str(gpu.ROOT), "PATH": ""}


PUT = """
import os, pathlib
from workbench.dev.results import Results
r = Results(pathlib.Path(os.environ['IGL_RESULTS']))
"""


def test_results_are_written_as_they_come_and_a_second_call_goes_on(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json")
    items = [item("good", PUT + "r.put('a', 'passed')"), item("bad", PUT + "r.put('b', 'failed'); exit(1)")]
    assert gpu.run_all(items, results, env(results.path), time.monotonic() + 60) == []
    outcomes = {name: e["outcome"] for name, e in Results(results.path).entries.items()}
    assert outcomes == {"a": "passed", "good": "passed", "b": "failed", "bad": "failed"}
    broken = [item("no start", "raise SystemExit(4)")]
    assert gpu.run_all(broken, results, env(results.path), time.monotonic() + 60) == []
    assert not results.done("no start")
    again = [item("good", "raise SystemExit(7)"), item("more", PUT + "r.put('c', 'passed')")]
    assert gpu.run_all(again, results, env(results.path), time.monotonic() + 60) == []
    assert results.entries["good"]["outcome"] == "passed"
    assert results.entries["more"]["outcome"] == "passed"
    assert gpu.summary(results, []) == 1


def test_what_hangs_is_killed_and_the_rest_of_its_item_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LEAST", 0)
    results = Results(tmp_path / "r.json")
    code = PUT + "import time\nif r.done('slow'):\n  r.put('next', 'passed')\n"
    code += "else:\n  r.put('slow', 'started'); time.sleep(60)"
    assert gpu.run_all([item("both", code, limit=4)], results, env(results.path), time.monotonic() + 90) == []
    outcomes = {name: e["outcome"] for name, e in results.entries.items()}
    assert outcomes == {"slow": "killed", "next": "passed", "both": "passed"}


def test_when_time_is_over_what_is_left_is_told(tmp_path: Path, capsys) -> None:
    results = Results(tmp_path / "r.json")
    left = gpu.run_all([item("late", "")], results, env(results.path), time.monotonic() + 1)
    assert left == ["late"]
    assert results.entries == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "LEAST", 0.5)
        begun = [item("begun", "import time; time.sleep(60)")]
        assert gpu.run_all(begun, results, env(results.path), time.monotonic() + 2) == ["begun"]
    assert results.entries == {}
    assert gpu.summary(results, left) == 2
    assert "goes on with late" in capsys.readouterr().out


def test_every_file_of_gpu_tests_is_run(repo_root: Path) -> None:
    files = {path.stem for path in (repo_root / "tests" / "gpu").glob("test_*.py")}
    assert {name for name, _, _ in gpu.TESTS} == files
    assert {item.title.removesuffix(" (dynamic VRAM)") for item in gpu.tests(gpu=True)} == {
        f"tests/gpu/{name}.py" for name in files
    }
    assert len(gpu.tests(gpu=False)) == len(files)


# The benchmark's plan and its tables.


def test_cases_have_names_of_their_own_and_goals_come_first() -> None:
    names = [case["name"] for task in plan.on_a_gpu() for case in task["cases"]]
    assert len(names) == len(set(names))
    models = {task["model"] for task in plan.on_a_gpu()}
    assert models == {"sd15", "sdxl", "flux", "qwen"}
    assert {(t["model"], t["cap"]) for t in plan.on_a_gpu()[:5]} == {
        ("flux", 0), ("sdxl", 8), ("flux", 12), ("qwen", 16),
    }  # fmt: skip
    assert {t["trainer"] for t in plan.rehearsed()} == {t["trainer"] for t in plan.on_a_gpu()}


def entry(trainer: str, seconds: float, cap: float = 0, **more: Any) -> dict[str, Any]:
    case = {"model": "flux", "resolution": 512, "batch": 1, "trainer": trainer, "cap": cap, "options": {}}
    steps = [{"wall": seconds, "cpu": seconds / 2}]
    figures = {"steps": steps, "flops": 4e12, "matrix_rate": 1e13}
    figures |= {"peak_memory": 2**31, "reserved_memory": 2**32}
    return {"outcome": "measured", "case": case, **figures, **more}


def test_the_table_of_a_gpu_puts_each_beside_ours_without_a_cap() -> None:
    made = (entry("ours", 1.0), entry("core", 2.0), entry("ours", 1.5, 12))
    entries = dict(zip(("bench a", "bench b", "bench c"), made, strict=True))
    too_large = {"outcome": "measured", "case": entries["bench b"]["case"], "failure": "out of memory"}
    entries["bench d"] = too_large
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in gpu_table.table(entries).splitlines()[2:]]
    assert lines[0][6:] == ["1.000", "0.40", "2.0", "4.0", "1.00"]
    assert [line[-1] for line in lines] == ["1.00", "2.00", "1.50", "–"]
    assert lines[2][4] == "12"
    assert lines[3][6] == "out of memory"


def test_the_table_of_streaming_has_medians_of_all_rounds() -> None:
    def of(share: float, seconds: float) -> dict[str, Any]:
        made = entry("ours", 2 * seconds)
        ring = {"blocks": 4, "away": 8 * 2**20, "arena": 2**22, "moved": 15 * 2**20} if share else None
        return {**made, "case": {**made["case"], "options": {"memory": {"streamed": share}}}, "ring": ring}

    entries = {"a": of(0, 2), "b": of(1, 3), "c": of(0, 2), "d": of(1, 5), "e": of(0, 9)}
    assert ring_table.table(entries).splitlines()[2:] == [
        "| flux | 0 | 0 | 0 | 0 | 0 | 2.00 | 1.00 |",
        "| flux | 1 | 4 | 8 | 4 | 15 | 4.00 | 2.00 |",
    ]


WITHOUT = """
import importlib.metadata, json, sys
left_out = set(json.loads(sys.argv[1]))
modules = {m for m, owners in importlib.metadata.packages_distributions().items()
           if any(owner.lower().replace("_", "-") in left_out for owner in owners)}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in modules else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import pytest
sys.exit(pytest.main(["tests/gpu", "--collect-only", "-q", "--no-cov", "-p", "no:cacheprovider"]))
"""


@pytest.mark.slow
def test_the_gpu_tests_import_nothing_that_a_bundle_leaves_out(repo_root: Path) -> None:
    left_out = sorted(set(bundle.LEFT_OUT) - set(stand_ins.NAMES))
    command = [sys.executable, "-c", WITHOUT, json.dumps(left_out)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "test_gradients.py" in done.stdout


NETWORKS = """
import json, sys, torch
from pathlib import Path
from workbench.dev import host
host.import_comfyui(Path(sys.argv[1])), host.register_pack()
from accelerate import init_empty_weights
from workbench.bench.models import MODELS, forward_flops
out = {}
for name in ("sd15", "sdxl", "flux", "qwen"):
    mine = MODELS[name].empty(torch.bfloat16).diffusion_model
    with init_empty_weights():
        theirs = MODELS[name].diffusers_class(**MODELS[name].diffusers_sizes)
    out[name] = [sum(p.numel() for p in net.parameters()) for net in (mine, theirs)]
flops = [forward_flops("flux", batch, 64) for batch in (1, 2)]
print(json.dumps({"sizes": out, "flops": flops}))
"""


@pytest.mark.slow
def test_networks_are_of_the_real_size_in_comfyui_and_in_diffusers(repo_root: Path, comfyui: Path) -> None:
    command = [sys.executable, "-c", NETWORKS, str(comfyui)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    billions = {name: round(mine / 1e9, 2) for name, (mine, _) in found["sizes"].items()}
    assert billions == {"sd15": 0.86, "sdxl": 2.57, "flux": 11.90, "qwen": 20.43}
    assert all(mine == theirs for mine, theirs in found["sizes"].values()), found
    one, two = found["flops"]
    weights, tokens = found["sizes"]["flux"][0], 512 + 16
    assert two == 2 * one
    # Each weight of a block is used once for a token of its stream, at two operations.
    assert 0.5 < one / (2 * weights * tokens) < 1.1


DYNAMIC = """
import sys
from pathlib import Path
from workbench.dev import host
host.import_comfyui(Path(sys.argv[1]))
import comfy.memory_management, comfy.model_patcher
import comfy_aimdo.control as aimdo
before = comfy.model_patcher.CoreModelPatcher
asked = []
aimdo.init = lambda: True
aimdo.init_devices = lambda devices: asked.extend(devices) or works
for works in (False, True):
    assert host.dynamic_vram() == works == comfy.memory_management.aimdo_enabled
    assert (comfy.model_patcher.CoreModelPatcher is comfy.model_patcher.ModelPatcherDynamic) == works
    assert works or comfy.model_patcher.CoreModelPatcher is before
assert len(asked) == 2
"""


def test_dynamic_vram_is_switched_on_as_comfyui_does_it_or_not_at_all(repo_root: Path, comfyui: Path) -> None:
    """What ComfyUI's main.py sets is set; whether weights then come at use only a GPU shows."""
    text = (comfyui / "main.py").read_text(encoding="utf-8")
    for line in ("CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic", "aimdo_enabled = True"):
        assert line in text
    command = [sys.executable, "-c", DYNAMIC, str(comfyui)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
