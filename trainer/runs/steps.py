"""The names that a run gives to what it leaves at a step: `step_000120` with an ending."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_NAME = re.compile(r"step_([0-9]{6,9})")


def name(step: int) -> str:
    return f"step_{step:06d}"


def step_of(file: str, ending: str) -> int | None:
    """The step of a file's name; None for a name that no run of ours gives (`step_000003 (1).json`)."""
    match = _NAME.fullmatch(file.removesuffix(ending)) if file.endswith(ending) else None
    step = int(match[1]) if match else None
    return step if step is not None and name(step) + ending == file else None


def by_step(paths: Iterable[Path], ending: str) -> dict[int, Path]:
    """Step → file, lowest first, of the files with such a name."""
    found = {step_of(path.name, ending): path for path in paths}
    return {step: found[step] for step in sorted(s for s in found if s is not None)}
