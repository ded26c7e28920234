"""The same graph again: load what is finished, go on with what was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..data.records import Dataset
from ..errors import shortened
from ..events import Emit, Notice
from ..files import clear_unfinished, sha256
from ..text import has_prompt_syntax
from .checkpoints import step_reached
from .folder import RunFolder, previous_runs
from .placing import Places
from .result import Result

MATHEMATICS = 4
"""Counts up when the same settings would give another LoRA, so that old runs are not taken for new ones: a
changed formula, order of draws, or default."""

_UNIMPORTANT = (
    *("name ", "save.", "preview."),
    *(f"validation.{name}" for name in ("every ", "keep", "patience", "decides", "judge", "max_")),
)


def run_key(config: TrainConfig, dataset: Dataset, models: Sequence[str]) -> str:
    """Two runs with one key are the same run, however long: sha256 of all that decides the weights.

    models: fingerprints of model, text encoder and VAE. Left out are the name, the number of steps, what
    trades time for memory and changes no weight, previews and measurements, and settings that have their
    default: an option that a later version adds changes no key. What is held out counts by the dataset's
    digest. caption_syntax counts where a caption has syntax; "comfyui" changes no key, since it was the only
    one at first.
    """
    matters, defaults = config.to_dict(), TrainConfig().to_dict()
    for name in ("name", "steps", "epochs", "save", "preview", "validation"):
        del matters[name]
    decisive = ("precision", "base_precision")
    matters["memory"] = {name: getattr(config.memory, name) for name in decisive}
    syntax = matters["data"].pop("caption_syntax")
    matters = _changed(matters, defaults)
    captions = (config.prior.class_prompt, *(r.caption for r in dataset.records))
    if syntax == "text" and any(map(has_prompt_syntax, captions)):
        matters["caption_syntax"] = syntax
    text = json.dumps([MATHEMATICS, matters, dataset.digest, list(models)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, nested as they are."""
    out = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = _changed(value, defaults[name])
            if value:
                out[name] = value
        elif value != defaults[name]:
            out[name] = value
    return out


def find_run(
    runs: Path, key: str, config: TrainConfig, dataset: str, steps: int, emit: Emit
) -> RunFolder | None:
    """The newest run with this key that is not longer than `steps`. Otherwise None, and says why.

    Drafts that killed processes left in the runs of this name are cleared.
    """
    clear_unfinished(runs)
    before = [(folder, folder.record()) for folder in previous_runs(runs)]
    if damaged := shortened(folder.path.name for folder, record in before if record is None):
        emit(Notice(message=f"left out, since run.json is damaged or of another version: {damaged}"))
    for folder, record in before:
        if record is not None and record.key == key and step_reached(folder.checkpoints) <= steps:
            return folder
    if before:
        folder, record = before[0]
        changed = differences(folder.config(), json.loads(json.dumps(config.to_dict())))
        changed = [d for d in changed if not d.startswith(_UNIMPORTANT)]
        if record is not None and record.dataset != dataset:
            changed.append(f"the dataset {record.dataset[:8]} → {dataset[:8]}")
        why = ", ".join(changed[:4]) or "another model, text encoder or VAE"
        emit(Notice(message=f"a new run, since the last one of this name differs: {why}"))
    return None


def finished(folder: RunFolder, config: TrainConfig, steps: int, places: Places) -> Result | None:
    """The result of a run that reached its end; a file of it that is gone is written again."""
    record = folder.record()
    done = record.finished if record else None
    if done is None or not done.answers(config, steps):
        return None
    name = done.lora
    sources = places.loras / name, folder.checkpoints / done.source
    source = next((path for path in sources if sha256(path) == done.sha256), None)
    if source is None:
        return None
    if not places.hold(source, config, name):
        name = places.put(source, config, lambda path: folder.finish(replace(done, lora=path.name)))
    path, embedding = places.result(config, name), places.embedding(config, name)
    return Result.of(folder, source, path, embedding, folder.log.losses(done.steps))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """ "adapter.rank 16 → 8" for each setting that differs."""
    out = []
    for name in sorted({*before, *now}):
        a, b = before.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{prefix}{name}.")
        elif name in now and a != b:
            out.append(f"{prefix}{name} {str(a)[:40]} → {str(b)[:40]}")
    return out
