"""The private base directory: our own models, input, output and custom_nodes.

Nothing in the user's ComfyUI is written to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .. import ROOT
from .steps import SetupError, say

BASE = ROOT / ".base"
PACK_NAME = "in-graph-lora"
FOLDERS = ("custom_nodes", "models/checkpoints", "models/loras", "input", "output", "temp", "user")
NOT_COPIED = (".git", ".venv", ".cache", ".base", "node_modules", "__pycache__")


def prepare(base: Path = BASE) -> Path:
    """Makes the folders that ComfyUI expects and puts the pack into custom_nodes."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    _link_pack(base / "custom_nodes" / PACK_NAME)
    return base


def _link_pack(link: Path) -> None:
    if link.exists() and link.resolve() == ROOT:
        return
    if link.is_symlink():  # the project folder was moved
        link.unlink()
    if link.is_dir():  # an earlier copy, or a junction to a folder that was moved
        _remove_folder(link)
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:  # Windows without the right to make symbolic links
        if not _junction(link):
            say("Links cannot be made here, so the pack is copied: run this again after each change.")
            shutil.copytree(ROOT, link, ignore=shutil.ignore_patterns(*NOT_COPIED))


def _remove_folder(folder: Path) -> None:
    try:
        os.rmdir(folder)  # a junction goes away without touching what it points at
    except OSError:
        shutil.rmtree(folder)


def _junction(link: Path) -> bool:
    if os.name != "nt":
        raise SetupError(f"{link} cannot be made as a symbolic link; is {link.parent} writable?")
    command = ["cmd", "/c", "mklink", "/J", str(link), str(ROOT)]
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
