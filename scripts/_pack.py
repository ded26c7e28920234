"""The pack for a script: its engine, without the nodes that ComfyUI imports."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


def import_pack() -> None:
    """Make the pack importable as `in_graph_lora`, whatever its folder is called."""
    package = ModuleType("in_graph_lora")
    package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["in_graph_lora"] = package
