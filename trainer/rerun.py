"""The same graph again: load what is finished, go on with what was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from .adapters.lora_file import read_lora
from .config import TrainConfig
from .data.records import Dataset
from .events import Emit, Notice
from .files import copy_as_new, read_json, sha256
from .previews import overview_path
from .run_folder import RunFolder, differences, previous_runs
from .session import Result
from .state import step_reached

_UNIMPORTANT = ("name ", "save.", "preview.", "validation.every ", "validation.keep", "validation.patience")


def _steps(config: TrainConfig, dataset: Dataset) -> int:
    return config.total_steps(sum(r.repeats for r in dataset.records if r.role == "instance"))


def find_run(runs: Path, key: str, config: TrainConfig, dataset: Dataset, emit: Emit) -> RunFolder | None:
    """The newest run with this key that is not longer than asked for. Otherwise None, and says why."""
    before = previous_runs(runs)
    steps = _steps(config, dataset)
    for folder in before:
        if folder.key == key and step_reached(folder.checkpoints) <= steps:
            return folder
    if before:
        old = read_json(before[0].path / "config.json") or {}
        changed = [
            d
            for d in differences(old, json.loads(json.dumps(config.to_dict())))
            if not d.startswith(_UNIMPORTANT)
        ]
        why = ", ".join(changed[:4]) or "another model, text encoder or VAE"
        emit(Notice(message=f"a new run, since the last one of this name differs: {why}"))
    return None


def finished(folder: RunFolder, config: TrainConfig, dataset: Dataset, loras: Path) -> Result | None:
    """The result of a run that reached its end; a LoRA file that is gone is written again."""
    done = folder.finished
    if done is None or not done.answers(config, _steps(config, dataset)):
        return None
    source = folder.checkpoints / done.source
    path = done.lora
    if not source.exists():
        if not path.exists():
            return None
    elif sha256(path) != sha256(source):
        path = copy_as_new(source, loras, config.name, lambda free: folder.finish(replace(done, lora=free)))
    losses = folder.losses()
    return Result(
        lora=read_lora(path)[0],
        path=path,
        losses=losses,
        run=folder.path,
        loss_curve=folder.loss_curve,
        previews=overview_path(folder),
    )
