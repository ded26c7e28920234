"""The package that ComfyUI's registry would publish: what is in it, its size, its links."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

MAX_BYTES = 3_700_000
PRODUCT = {
    *(
        "__init__.py",
        "nodes",
        "trainer",
        "web",
        "workflows",
        "docs",
        "locales",
        "scripts",
        "recipes",
        "docker",
    ),
    *("README.md", "README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *(
        "pyproject.toml",
        "py.typed",
        "requirements.txt",
        "requirements-evidence.txt",
        "requirements-optimizers.txt",
    ),
}
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def comfy(*arguments: str, cwd: Path) -> str:
    """comfy-cli, which packs and validates offline."""
    command = [Path(sys.executable).with_name("comfy"), "--skip-prompt", "--no-enable-telemetry", *arguments]
    env = {**os.environ, "DO_NOT_TRACK": "1", "HOME": str(cwd), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with what git has, or would have."""
    folder = tmp_path_factory.mktemp("checkout")
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=repo_root, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        source = repo_root / name
        if source.is_file() and not source.is_symlink() and source.suffix != ".safetensors":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
    for command in (["git", "init", "-q"], ["git", "add", "-A"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def package(checkout: Path) -> dict[str, zipfile.ZipInfo]:
    comfy("node", "pack", cwd=checkout)
    with zipfile.ZipFile(checkout / "node.zip") as packed:
        return {info.filename: info for info in packed.infolist() if not info.is_dir()}


def test_comfy_cli_finds_nothing_to_refuse(checkout: Path) -> None:
    said = comfy("node", "validate", cwd=checkout)
    assert "passed" in said
    assert "warning" not in said.lower()


def test_users_install_the_product_and_nothing_else(package: dict[str, zipfile.ZipInfo]) -> None:
    tops = {PurePosixPath(name).parts[0] for name in package}
    assert tops <= PRODUCT
    assert {"__init__.py", "nodes", "trainer", "web", "workflows", "docs"} <= tops


def test_the_package_is_small(package: dict[str, zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in package.values())
    assert total <= MAX_BYTES, f"{total / 1e6:.2f} MB"


def test_no_link_in_the_package_is_dead(package: dict[str, zipfile.ZipInfo], checkout: Path) -> None:
    pages = {name: (checkout / name).read_text(encoding="utf-8") for name in package if name.endswith(".md")}
    dead = []
    for page, text in pages.items():
        for link in (a or b for a, b in _LINK.findall(re.sub(r"`[^`]*`", "", text))):
            if "://" in link or link.startswith("mailto:"):
                continue
            path, _, anchor = link.partition("#")
            target = os.path.normpath(PurePosixPath(page).parent / path) if path else page
            known = target in package or any(name.startswith(f"{target}/") for name in package)
            if not known or (anchor and anchor not in anchors(pages.get(target, ""))):
                dead.append(f"{page}: {link}")
    assert not dead


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    made = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in _HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in made}


def test_pip_installs_the_engine_the_nodes_and_what_they_read(repo_root: Path) -> None:
    """setuptools cannot leave out a module of the root such as dev.py; this backend takes what is listed."""
    project = (repo_root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^only-include = \[(.*)\]$", project, re.M)
    assert found is not None
    listed = set(re.findall(r'"([^"]+)"', found[1]))
    assert listed == {"__init__.py", "py.typed", "nodes", "trainer", "recipes"}
    assert all((repo_root / name).exists() for name in listed)
