"""What a page shows of a run, read from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import steps
from .checkpoints import loras
from .folder import RunFolder

MAX_POINTS = 10_000

Point = tuple[int, float | None, float | None]
"""(step, loss, learning rate); None where it was no number."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The preview pictures of a run: `files[step]` has one for each of the prompts, in their order."""

    prompts: tuple[str, ...]
    files: dict[int, list[Path]]


def curve(folder: RunFolder, most: int = MAX_POINTS) -> list[Point]:
    """The steps so far; of a long run means of neighbours, at most `most`."""
    points = [(e["step"], e["loss"], _rate(e.get("lr"))) for e in folder.log.events("StepDone")]
    return thinned(points, most)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Means of as many neighbours as it takes; the step and the rate are those of the last one."""
    size = max(1, math.ceil(len(points) / most))
    if size == 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], _mean([loss for _, loss, _ in group]), group[-1][2]) for group in groups]


def prompts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the preview pictures, in their order; config: the content of a config.json."""
    preview = config.get("preview")
    own = preview if isinstance(preview, dict) else {}
    found = [own.get("prompts"), own.get("unrelated_prompts")]
    return tuple(str(text) for texts in found if isinstance(texts, list) for text in texts)


def pictures(folder: RunFolder) -> Pictures:
    """Those of steps that have a picture of each prompt."""
    words = prompts(folder.config())
    try:
        there = [p for p in (folder.path / "previews").iterdir() if p.is_file() and not p.is_symlink()]
    except OSError:
        there = []
    found = [steps.by_step(there, f"_{i + 1}.png") for i in range(len(words))]
    whole = [step for step in (found[0] if found else {}) if all(step in files for files in found)]
    return Pictures(prompts=words, files={step: [files[step] for files in found] for step in whole})


def history(folder: RunFolder) -> dict[str, Any]:
    """Of JSON's types: points, held_out, checkpoints, notices, and the prompts and steps of previews."""
    shown = pictures(folder)
    return {
        "points": curve(folder),
        "held_out": [[e["step"], e["loss"]] for e in folder.log.events("Validated")],
        "checkpoints": list(loras(folder.checkpoints)),
        "notices": [str(e.get("message", "")) for e in folder.log.events("Notice")],
        "prompts": list(shown.prompts),
        "previews": list(shown.files),
    }


def _mean(losses: Sequence[float | None]) -> float | None:
    kept = [loss for loss in losses if loss is not None]
    return sum(kept) / len(kept) if kept else None


def _rate(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
