"""The pack for a script: its engine, without the nodes that ComfyUI imports."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).resolve().parent.parent


def import_pack() -> None:
    """Make the pack importable as `in_graph_lora`, whatever its folder is called."""
    package = ModuleType("in_graph_lora")
    package.__path__ = [str(PACK)]
    sys.modules["in_graph_lora"] = package


def print_anything() -> None:
    """Also names that the console or the log of this system has no letters for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def version() -> str:
    """Of the pack; it is read and not imported, since that needs ComfyUI."""
    found = re.search(r'^__version__ = "(.+)"$', (PACK / "__init__.py").read_text(encoding="utf-8"), re.M)
    return found[1] if found else ""


def code_digest() -> str:
    """sha256 of what the pack runs: of two versions it differs."""
    h = hashlib.sha256()
    for folder in ("trainer", "nodes", "scripts"):
        for path in sorted((PACK / folder).rglob("*.py")):
            h.update(path.relative_to(PACK).as_posix().encode())
            h.update(path.read_bytes())
    return h.hexdigest()
