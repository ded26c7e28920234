"""What an earlier run left at one of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..adapters.lora_file import read_lora
from ..adapters.shapes import check_file
from ..config import ValidationConfig
from ..errors import ConfigError, shortened
from ..evidence.figures import FIGURES
from .checkpoints import loras, strangers
from .evaluated import best_evaluated
from .folder import RunFolder
from .judged import best_judged, judged_before
from .validation import Validation

NEWEST, BEST = 0, -1


@dataclass(frozen=True, kw_only=True)
class PastRun:
    step: int
    lora: dict[str, Tensor]
    path: Path
    """The file that it was read from."""
    metadata: Mapping[str, str]
    losses: list[float]
    """Of the steps up to `step`."""
    summary: str


def load_past_run(folder: RunFolder, step: int) -> PastRun:
    """step: NEWEST, BEST (by the newest report of Evaluate LoRA or what decided in the run) or a step that
    has a LoRA file.

    Raises ConfigError that names the steps there are, LoraFileError for a file that cannot be read.
    """
    files = loras(folder.checkpoints)
    if not files:
        raise ConfigError(f"run {folder.path.name} has no checkpoint yet; choose another run")
    validations = {v.step: v.loss for v in folder.log.validations()}
    if step == NEWEST:
        step = max(files)
    elif step == BEST:
        own = best_evaluated(folder, files) or best_judged(folder, files)
        step = own or _best(folder, validations, files)
    there = ", ".join(map(str, files))
    if step not in files:
        raise ConfigError(f"run {folder.path.name} has no LoRA of step {step}; choose one of {there}")
    lora, metadata = read_lora(files[step])
    check_file(lora)
    losses = folder.log.losses(step)
    lines = [f"step {step} of run {folder.path.name}", f"steps with a LoRA: {there}"]
    if losses:
        lines.append(f"loss at this step {losses[-1]:.5f}")
    if step in validations:
        lines.append(f"held-out loss {validations[step]:.5f}")
    if said := judged_before(folder)[1].get(step):
        figures = [f"{f.title} {said[f.key]:.3f}" for f in FIGURES if f.key in said]
        lines.append(f"judge: {', '.join(figures)}")
    if others := strangers(folder.checkpoints):
        lines.append(f"left out, not written by a run: {shortened(others)}")
    return PastRun(
        step=step, lora=lora, path=files[step], metadata=metadata, losses=losses, summary="\n".join(lines)
    )


def _best(folder: RunFolder, validations: Mapping[int, float], files: Mapping[int, object]) -> int:
    validation = Validation(ValidationConfig(), 0)
    for step, loss in validations.items():
        if step in files:
            validation.add(step, loss)
    if validation.best_step is None:
        raise ConfigError(
            f"run {folder.path.name} measured no held-out loss; choose a step (Train Preview sets held_out)"
        )
    return validation.best_step
