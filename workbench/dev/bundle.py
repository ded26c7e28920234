"""`python dev.py bundle FOLDER`: what a CUDA machine without internet lacks to run our GPU tests.

ComfyUI's source, this pack, and wheels: what `import comfy` and the tests need, less what the machine is
expected to have. `python dev.py gpu --bundle FOLDER` uses it there.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from .. import ROOT
from . import comfyui
from .steps import LOGS, SetupError, run_logged, say

MOST_BYTES = 34 * 2**20
"""Of the whole folder: it has to travel together with a checkout."""

EXPECTED = ("torch", "numpy", "transformers", "peft", "accelerate", "safetensors", "pillow")
"""What the machine has to have, with what these need themselves."""

TESTS_NEED = ("pytest", "pytest-timeout")

_SERVER = "ComfyUI's server and its page; no test here starts one"
_NODES = "nodes that no test here runs"
_STANDS_IN = "too large; where the machine lacks it a stand-in is imported, since nothing here calls it"
LEFT_OUT = {
    "aiohttp": _SERVER,
    "alembic": _SERVER,
    "blake3": _SERVER,
    "comfyui-embedded-docs": _SERVER,
    "comfyui-frontend-package": _SERVER,
    "comfyui-workflow-templates": _SERVER,
    "pydantic": _SERVER,
    "pydantic-settings": _SERVER,
    "simpleeval": _SERVER,
    "sqlalchemy": _SERVER,
    "yarl": _SERVER,
    "comfy-angle": _NODES,
    "kornia": _NODES,
    "pyopengl": _NODES,
    "sentencepiece": _NODES,
    "spandrel": _NODES,
    "av": _STANDS_IN,
    "scipy": _STANDS_IN,
    "torchaudio": f"made for one release of torch; {_STANDS_IN.partition('; ')[2]}",
    "torchvision": f"made for one release of torch; {_STANDS_IN.partition('; ')[2]}",
}
"""Of ComfyUI's requirements, and why."""

TRIMMED = {
    "comfy-kitchen": (
        "*.so",
        "its compiled kernels are 45 MB; quantised layers compute in its Python code, on the GPU too",
    ),
}
"""Wheels that travel without some of their files, and why."""

NOT_OF_COMFYUI = (
    *("tests*", "blueprints", "models", "input", "output", "custom_nodes", "web", "comfy_api_nodes"),
    *(".*", "__pycache__", "openapi.yaml"),
)
NOT_OF_PACK = ("*.safetensors", "*.jpg", "*.png", ".ci")
_GLIBC = (39, 34, 31, 28, 27, 24, 17, 12, 5)


def main(rest: Sequence[str], python: Path, comfy: Path) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bundle", description="Collect what a CUDA machine lacks.")
    parser.add_argument("folder", type=Path, help="is made, or made anew")
    parser.add_argument("--python", default="3.12", metavar="3.N", help="of the machine; default: 3.12")
    args = parser.parse_args(rest)
    collect(args.folder, python, comfy, args.python)
    return 0


def collect(folder: Path, python: Path, comfy: Path, version: str) -> None:
    """Fills the folder. Raises SetupError when it is no bundle's, or gets larger than MOST_BYTES."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "bundle.json").exists():
        raise SetupError(f"{folder} holds something that is no bundle; name a new folder")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    resolver = Resolver(python, version)
    expected = resolver.closure(EXPECTED)
    roots = {r: name_of(r) for r in (*requirements(comfy), *requirements(ROOT), *TESTS_NEED)}
    needed = resolver.closure([r for r, name in roots.items() if name not in LEFT_OUT])
    wheels = {name: pin for name, pin in needed.items() if name not in expected and name not in LEFT_OUT}
    resolver.download(wheels.values(), folder / "wheels")
    for name, (files, _) in TRIMMED.items():
        for wheel in (folder / "wheels").glob(f"{name.replace('-', '_')}-*.whl"):
            trim(wheel, files)
    pack_comfyui(comfy, folder / "ComfyUI.tar.xz")
    copy_pack(ROOT, folder / "pack")
    (folder / "expected.txt").write_text("\n".join(sorted(expected)) + "\n", encoding="utf-8")
    about = {
        "python": version,
        "comfyui": comfyui.version(comfy),
        "expected": list(EXPECTED),
        "wheels": sorted(wheels.values()),
        "left out": {name: LEFT_OUT[name] for name in roots.values() if name in LEFT_OUT},
        "trimmed": {name: why for name, (_, why) in TRIMMED.items()},
    }
    (folder / "bundle.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    tell(folder, about, expected)
    check_size(folder)


class Resolver:
    """uv decides what belongs together, pip brings the wheels: for Linux on x86-64, whatever runs here."""

    def __init__(self, python: Path, version: str) -> None:
        self.python, self.version = python, version

    def closure(self, roots: Iterable[str]) -> dict[str, str]:
        """Name → `name==version`, of these requirements and of all that they need."""
        with tempfile.TemporaryDirectory() as temp:
            asked, answer = Path(temp, "asked.txt"), Path(temp, "answer.txt")
            asked.write_text("\n".join(roots), encoding="utf-8")
            run_logged(
                [self.python, "-m", "uv", "pip", "compile", asked, "--output-file", answer, "--no-header",
                 "--no-annotate", "--python-version", self.version,
                 "--python-platform", "x86_64-manylinux_2_28"],
                log="bundle-resolve",
                failure="uv could not find out which packages belong together",
            )  # fmt: skip
            return {name_of(pin): pin for pin in answer.read_text(encoding="utf-8").split("\n") if pin}

    def download(self, pins: Iterable[str], folder: Path) -> None:
        platforms = [f"manylinux_2_{minor}_x86_64" for minor in _GLIBC] + ["manylinux2014_x86_64"]
        run_logged(
            [self.python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder,
             "--python-version", self.version, "--implementation", "cp",
             *(word for platform in platforms for word in ("--platform", platform)), *pins],
            log="bundle-download",
            failure=f"a wheel for Python {self.version} could not be downloaded",
        )  # fmt: skip


def requirements(folder: Path) -> list[str]:
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


def name_of(requirement: str) -> str:
    """The package of a requirement, as the index spells it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def trim(wheel: Path, pattern: str) -> None:
    """Takes files out of a wheel, and out of its list of files."""
    with zipfile.ZipFile(wheel) as whole:
        kept = {name: whole.read(name) for name in whole.namelist() if not fnmatch.fnmatch(name, pattern)}
    record = next(name for name in kept if name.endswith(".dist-info/RECORD"))
    lines = kept[record].decode().splitlines()
    lines = [line for line in lines if not fnmatch.fnmatch(line.partition(",")[0], pattern)]
    kept[record] = ("\n".join(lines) + "\n").encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as smaller:
        for name, content in kept.items():
            smaller.writestr(name, content)


def pack_comfyui(comfy: Path, archive: Path) -> None:
    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = PurePosixPath(info.name).relative_to("ComfyUI")
        top = path.parts[0] if path.parts else ""
        hidden = any(fnmatch.fnmatch(part, "__pycache__") for part in path.parts)
        return None if hidden or any(fnmatch.fnmatch(top, name) for name in NOT_OF_COMFYUI) else info

    say(f"Packing ComfyUI {comfyui.version(comfy)}")
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(comfy.resolve(), "ComfyUI", filter=wanted)


def copy_pack(root: Path, target: Path) -> None:
    """What git has or would have, without pictures and trained weights."""
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        source = root / name
        skipped = any(fnmatch.fnmatch(name, pattern) for pattern in NOT_OF_PACK)
        if source.is_file() and not source.is_symlink() and not skipped:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)


def tell(folder: Path, about: dict, expected: dict[str, str]) -> None:
    say(f"Expected on the machine: {', '.join(EXPECTED)} and what they need ({len(expected)} packages):")
    print("  " + " ".join(sorted(expected)))
    for what in ("left out", "trimmed"):
        for name, why in about[what].items():
            say(f"{what}: {name} ({why})")
    parts = sorted(folder.iterdir(), key=size, reverse=True)
    say(f"{folder}: " + ", ".join(f"{p.name} {size(p) / 2**20:.1f} MiB" for p in parts))


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def check_size(folder: Path, most: int = MOST_BYTES) -> None:
    total = size(folder)
    if total > most:
        files = sorted((p for p in folder.rglob("*") if p.is_file()), key=size, reverse=True)[:3]
        largest = ", ".join(f"{p.name} {size(p) / 2**20:.1f}" for p in files)
        raise SetupError(
            f"the bundle has {total / 2**20:.1f} MiB and may have {most / 2**20:.0f}; the largest files are"
            f" {largest}: leave one out in workbench/dev/bundle.py (log: {LOGS / 'bundle-download.log'})"
        )
    say(f"{total / 2**20:.1f} of {most / 2**20:.0f} MiB")
