"""What a run reports. Whoever runs the engine passes a function that takes these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .text import readable


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Work before, between or after the steps: encoding pictures, captions, previews."""

    name: str
    done: int
    total: int
    label: str = ""
    """What is shown instead of the name, where the same phase comes several times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """What the run will take, before it begins: `memory.report.Plan.line`."""

    line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOpened:
    """The run has a folder, new or found again, and has reached `step` of `steps`."""

    path: Path
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStarted:
    steps: int
    samples: int
    layers: int
    parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """One optimizer step. `loss` is the mean over the step's samples."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    skipped: bool = False
    """The loss or the gradient was not finite, so the weights were left alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSaved:
    step: int
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Validated:
    """Held-out loss after `step` optimizer steps; see `trainer.validation`."""

    step: int
    loss: float
    best: bool
    """The lowest so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What a judge says of the sample pictures of a step; see `trainer.runs.judged`."""

    step: int
    figures: Mapping[str, float]
    """Key of `evidence.figures` → its value."""
    best: bool
    """By `evidence.choice` the best so far."""
    seen_by: str = ""
    """`runs.record.seen_by`: figures of another judge or of other pictures do not compare."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewSaved:
    """The sample pictures of a step, one for each prompt."""

    step: int
    paths: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Something was skipped or chosen for the user; it is shown, never only logged."""

    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", readable(self.message))


Event = (
    Phase
    | Planned
    | RunOpened
    | RunStarted
    | StepDone
    | CheckpointSaved
    | Validated
    | Judged
    | PreviewSaved
    | Notice
)
Emit = Callable[[Event], None]
