"""What a run needs to go on.

A checkpoint of step N is three files in the run's folder `checkpoints/`:

    step_N.safetensors         the LoRA, for any loader
    step_N.state.safetensors   adapter, optimizer and average, all fp32 or as the optimizer keeps them
    step_N.json                numbers, and the digests of all three; written last, so it vouches for them

Random draws need no state: each comes from a generator named by (seed, purpose, step).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..config import SaveConfig
from ..files import read_json, sha256, write_json, write_whole
from . import steps

FORMAT = 2
LORA, STATE, INDEX = ".safetensors", ".state.safetensors", ".json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    step: int
    lora: Path
    state: Path
    numbers: Mapping[str, Any]

    @classmethod
    def elsewhere(cls, step: int) -> Checkpoint:
        """That another process has on its disk."""
        return cls(step=step, lora=Path(), state=Path(), numbers={})


def lora_path(folder: Path, step: int) -> Path:
    """Where the LoRA of a step is written, before `commit`."""
    return folder / (steps.name(step) + LORA)


def _state_path(folder: Path, step: int) -> Path:
    return folder / (steps.name(step) + STATE)


def _index_path(folder: Path, step: int) -> Path:
    return folder / (steps.name(step) + INDEX)


def loras(folder: Path) -> dict[int, Path]:
    """Step → LoRA file, lowest step first."""
    return steps.by_step(_files(folder), LORA)


def indices(folder: Path) -> dict[int, Path]:
    """Step → index file, lowest step first; what they vouch for is not checked."""
    return steps.by_step(_files(folder), INDEX)


def strangers(folder: Path) -> list[str]:
    """Names of files that no run of ours writes: copies, for example."""
    ours = (LORA, STATE, INDEX)
    found = (p.name for p in _files(folder) if not p.name.startswith("."))
    return sorted(name for name in found if all(steps.step_of(name, e) is None for e in ours))


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except OSError:
        return []


def commit(folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Checkpoint:
    """Write the state of a step whose LoRA is already there; the JSON file makes the checkpoint count."""
    lora, state = lora_path(folder, step), _state_path(folder, step)
    write_whole(state, save(dict(tensors)))
    write_json(_index_path(folder, step), {**_vouched(lora, state, dict(numbers)), "step": step})
    return Checkpoint(step=step, lora=lora, state=state, numbers=numbers)


def _vouched(lora: Path, state: Path, numbers: dict[str, Any]) -> dict[str, Any]:
    """What the index says of the other files and of its own numbers."""
    return {
        "format": FORMAT,
        "numbers": numbers,
        "numbers_sha256": hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest(),
        "sha256": {path.name: sha256(path) for path in (lora, state)},
    }


def step_reached(folder: Path) -> int:
    """The step of the newest checkpoint, whole or not; 0 without one."""
    return max(indices(folder), default=0)


def newest(folder: Path) -> tuple[Checkpoint | None, list[int]]:
    """The newest checkpoint whose files are whole, and the steps of newer ones that are not."""
    damaged = []
    for step in reversed(indices(folder)):
        if (checkpoint := _whole(folder, step)) is not None:
            return checkpoint, damaged
        damaged.append(step)
    return None, damaged


def _whole(folder: Path, step: int) -> Checkpoint | None:
    content = read_json(_index_path(folder, step))
    numbers = content.get("numbers") if isinstance(content, dict) else None
    if not isinstance(numbers, dict):
        return None
    lora, state = lora_path(folder, step), _state_path(folder, step)
    if content != {**_vouched(lora, state, numbers), "step": step}:
        return None
    return Checkpoint(step=step, lora=lora, state=state, numbers=numbers)


def prune(folder: Path, keep: int) -> None:
    """Drop all but the newest `keep` states. The LoRA files stay: `thin` decides about them."""
    kept = list(indices(folder))[-keep:]
    for step in steps.by_step(_files(folder), STATE):  # also of a checkpoint that a killed process left
        if step not in kept:
            forget(folder, step)


def thin(folder: Path, save: SaveConfig, best: int | None) -> None:
    """Drop the LoRAs that the rule does not keep; never the best one, nor those that a state belongs to."""
    there = loras(folder)
    kept = {*list(there)[-save.keep_checkpoints :], *indices(folder), best}
    for step, path in there.items():
        if step not in kept and not save.stays(step):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def forget(folder: Path, step: int) -> None:
    """Drop the state of a step, the index first: without it nothing trusts the rest."""
    with contextlib.suppress(OSError):
        _index_path(folder, step).unlink(missing_ok=True)
        _state_path(folder, step).unlink(missing_ok=True)
