"""What a run will write to the disk, before it does."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .config import TrainConfig

LINE = 200
"""Bytes of a step in events.jsonl, as measured over 20,000 steps."""
PIXEL = 2
"""Bytes of a pixel in a PNG of a photo, about."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """Bytes."""

    loras: int
    """How many, the one in output/loras among them."""
    states: int
    """How many at once."""
    cache: int
    """Of latents and conditions, where none of them is there yet; counted in `needed`."""
    needed: int
    free: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.free


def space(
    config: TrainConfig,
    steps: int,
    *,
    adapters: int,
    optimizer: int,
    folder: Path,
    side: int,
    before: int = 0,
    cache: int = 0,
) -> Space:
    """adapters, optimizer: bytes of the trained weights and of what is kept for them. folder: of the output,
    may be missing yet. side: pixels of a preview without a size. before: bytes that the run has written.
    cache: bytes of what is encoded of the dataset."""
    save, preview = config.save, config.preview
    saved = _every(save.every, steps) | {steps}
    drawn = ({0, steps} | _every(preview.every, steps)) if preview.prompts else set()
    saved |= drawn - {0}
    kept = saved
    if save.keep_checkpoints:
        newest = sorted(saved)[-max(save.keep_checkpoints, save.keep) :]
        kept = {step for step in saved if save.stays(step)} | {*newest}
    # One more of each while the next one is written, and the best; the result is a copy.
    loras, states = len(kept) + 2 + config.validation.keep_best, min(save.keep, len(saved)) + 1
    pixels = (preview.width or side) * (preview.height or side) * len(preview.all_prompts) * len(drawn)
    written = loras * adapters + states * (adapters + optimizer) + LINE * steps
    written += 2 * PIXEL * pixels  # each one by itself and in previews.png
    needed = max(0, written - before) + cache
    return Space(loras=loras, states=states, cache=cache, needed=needed, free=free(folder))


def free(folder: Path) -> int:
    """Bytes on the disk of a folder, or of where it will be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def size(folder: Path) -> int:
    """Bytes of all files below."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue  # it is being replaced
    return total


def _every(interval: int, steps: int) -> set[int]:
    return set(range(interval, steps + 1, interval)) if interval else set()
