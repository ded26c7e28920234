"""The private .venv: made once, filled from requirement files, stamped with what is in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from .. import ROOT
from .steps import SetupError, full_disk_explained, run_logged, say

VENV = ROOT / ".venv"
STAMP = VENV / "in-graph-lora.json"
INSTALLING = VENV / "installing"

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
"""Releases that belong together, for this environment only: the pack takes whatever torch ComfyUI has."""


def python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make() -> Path:
    """Makes .venv if it is missing or if an interrupted installation left it half filled."""
    if INSTALLING.exists():
        say("The last installation did not end; starting with a new .venv")
        shutil.rmtree(VENV)
    if python().exists() and (STAMP.exists() or _has_pip()):
        return python()
    say(f"Making .venv with Python {sys.version_info.major}.{sys.version_info.minor}")
    shutil.rmtree(VENV, ignore_errors=True)
    run_logged(
        [sys.executable, "-m", "venv", VENV],
        log="make-venv",
        failure="Python could not make a .venv (Debian and Ubuntu need the package python3-venv)",
    )
    return python()


def _has_pip() -> bool:
    return (
        subprocess.run([python(), "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    )


def install(comfyui: Path, *, dev: bool) -> None:
    """Installs what ComfyUI and the pack need, and for tests and lint also requirements-dev.txt.

    Does nothing when the stamp says that exactly these requirement files are in already.
    """
    run_files = [comfyui / "requirements.txt", ROOT / "requirements.txt"]
    groups = {"run": run_files, "dev": [*run_files, ROOT / "requirements-dev.txt"]}
    done = _read_stamp()
    wanted = "dev" if dev else "run"
    if done.get(wanted) == _digest(groups[wanted]):
        return
    say("Installing packages into .venv (this takes minutes the first time)")
    with full_disk_explained():
        INSTALLING.touch()
        STAMP.unlink(missing_ok=True)
        _install(groups[wanted])
        # The dev group contains the run group, so it counts for both.
        stamped = {name: _digest(groups[name]) for name in ({"run", "dev"} if dev else {"run"})}
        STAMP.write_text(json.dumps(stamped, indent=2), encoding="utf-8")
        INSTALLING.unlink()


def _install(files: Iterable[Path]) -> None:
    wanted: list[object] = [*TORCH]
    for file in files:
        wanted += ["-r", file]
    # uv is many times faster; where it cannot be had or cannot reach the index, pip does the same work.
    try:
        run_logged(
            [python(), "-m", "pip", "install", "uv"], log="install-uv", failure="uv could not be installed"
        )
        command = [python(), "-m", "uv", "pip", "install", "--python", python(), *wanted]
        run_logged(command, log="install-with-uv", failure="uv could not install the packages")
    except SetupError as error:
        say(f"{error}; trying pip")
        run_logged(
            [python(), "-m", "pip", "install", *wanted],
            log="install-with-pip",
            failure="pip could not install the packages",
        )


def _digest(files: Iterable[Path]) -> str:
    h = hashlib.sha256(repr((sys.version_info[:2], TORCH)).encode())
    for file in files:
        h.update(file.read_bytes() + b"\0")
    return h.hexdigest()


def _read_stamp() -> dict[str, str]:
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
