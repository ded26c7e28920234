"""What a run needs to go on: written whole, found again, checked before it is trusted.

A checkpoint of step N is three files in the run's folder `checkpoints/`:

    step_N.safetensors         the LoRA, for any loader
    step_N.state.safetensors   adapter, optimizer and average, all fp32 or as the optimizer keeps them
    step_N.json                numbers, and the digests of the other two; written last, so it vouches for them

Random draws need no state: each comes from a generator named by (seed, purpose, step).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from .files import read_json, sha256, write_json, write_whole

FORMAT = 1
_STATE = ".state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    step: int
    lora: Path
    state: Path
    numbers: Mapping[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        return load(self.state.read_bytes())


def _paths(folder: Path, step: int) -> tuple[Path, Path, Path]:
    stem = folder / f"step_{step:06d}"
    return stem.with_suffix(".safetensors"), stem.with_suffix(_STATE), stem.with_suffix(".json")


def lora_path(folder: Path, step: int) -> Path:
    """Where the LoRA of a step is written, before `commit`."""
    return _paths(folder, step)[0]


def commit(folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Checkpoint:
    """Write the state of a step whose LoRA is already there; the JSON file makes the checkpoint count."""
    lora, state, index = _paths(folder, step)
    write_whole(state, save(dict(tensors)))
    digests = {lora.name: sha256(lora), state.name: sha256(state)}
    write_json(index, {"format": FORMAT, "step": step, "numbers": dict(numbers), "sha256": digests})
    return Checkpoint(step=step, lora=lora, state=state, numbers=numbers)


def checkpoints(folder: Path) -> list[Path]:
    """The index files, oldest first; what they vouch for is not checked."""
    return sorted(folder.glob("step_*.json"))


def step_reached(folder: Path) -> int:
    """The step of the newest checkpoint, whole or not; 0 without one."""
    return max((int(path.stem.removeprefix("step_")) for path in checkpoints(folder)), default=0)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files are whole, and the names of newer ones that are not."""
    damaged = []
    for index in reversed(checkpoints(folder)):
        content = read_json(index)
        if isinstance(content, dict) and content.get("format") == FORMAT:
            lora, state, _ = _paths(folder, content["step"])
            if all(sha256(p) == content["sha256"].get(p.name) for p in (lora, state)):
                return (
                    Checkpoint(step=content["step"], lora=lora, state=state, numbers=content["numbers"]),
                    damaged,
                )
        damaged.append(index.stem)
    return None, damaged


def prune(folder: Path, keep: int) -> None:
    """Drop all but the newest `keep` states. The LoRA files stay: they are small and may be the best ones."""
    kept = {index.stem for index in checkpoints(folder)[-keep:]}
    for state in folder.glob(f"step_*{_STATE}"):  # also of a checkpoint that a killed process left unfinished
        name = state.name.removesuffix(_STATE)
        if name not in kept:
            forget(folder, name)


def forget(folder: Path, name: str) -> None:
    """Drop the state of `step_N`, the index first: without it nothing trusts the rest."""
    with contextlib.suppress(OSError):
        (folder / f"{name}.json").unlink(missing_ok=True)
        (folder / f"{name}{_STATE}").unlink(missing_ok=True)
