"""Events of a training → one bar over the whole run, and messages to the page, at most five a second."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..trainer.errors import StorageError
from ..trainer.events import (
    CheckpointSaved,
    Event,
    Notice,
    Phase,
    Planned,
    PreviewSaved,
    RunOpened,
    StepDone,
    Validated,
)
from ..trainer.host.active import ActiveRun
from ..trainer.host.progress import MemoryWatch, NodeProgress
from ..trainer.timeline import CLASS_PICTURES, HELD_OUT, PREVIEWS, STEPS, TRIAL, Timeline
from .canvas import Place, remember

if TYPE_CHECKING:
    from ..trainer.config import TrainConfig
    from ..trainer.data.records import Dataset

_SEND_EVERY = 0.2  # seconds
_AT_LEAST_EVERY = 1.0  # seconds: memory and the time that is left change by themselves
_BAR = 1000


@dataclass
class _New:
    """What was not sent yet."""

    points: list[tuple[int, float | None, float]]
    held_out: list[tuple[int, float | None]]
    checkpoints: list[int]
    previews: list[int]
    notices: list[str]


class TrainingReport:
    """Call it with events, within `reported`."""

    def __init__(self, place: Place, training: ActiveRun, config: TrainConfig, dataset: Dataset) -> None:
        pictures, steps = len(dataset.records), config.total_steps(max(1, dataset.shown))
        self.place, self.training, self.config = place, training, config
        self.node = NodeProgress(place.node or None)
        self.memory = MemoryWatch()
        self.line = Timeline(
            {
                TRIAL: int(config.memory.fit == "auto"),
                "encoding pictures": pictures,
                "encoding captions": pictures,
                STEPS: steps,
                PREVIEWS: self._previews_after(0, steps),
                HELD_OUT: self._measured_after(0, steps),
            },
            costs={
                PREVIEWS: _sampling(config.preview.steps, config.preview.cfg),
                CLASS_PICTURES: _sampling(config.prior.steps, config.prior.cfg),
                HELD_OUT: config.validation.held_out / 3,
            },
        )
        self.notices: list[str] = []
        self.plan = ""
        self.run: Path | None = None
        self._phase, self._label, self._done, self._total = "", "preparing", 0, 0
        self._step, self._steps, self._loss = 0, 0, None
        self._new = _New([], [], [], [], [])
        self._lock = threading.Lock()
        self._dirty, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_on, name="in-graph-lora-report", daemon=True)
        self._bar_at = -math.inf

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._take(event)
            reached = self.line.fraction
        self._dirty.set()
        # Here and not in the sender's thread: ComfyUI raises its interrupt in here.
        if self.line.elapsed - self._bar_at >= _SEND_EVERY:
            self._bar_at = self.line.elapsed
            self.node.update(round(_BAR * reached), _BAR)

    def _take(self, event: Event) -> None:
        if isinstance(event, Phase):
            self.line.enter(event.name, event.done, event.total)
            self._at(event.name, event.done, event.total, event.label)
        elif isinstance(event, Planned):
            self.plan = event.line
            self.line.leave()
        elif isinstance(event, RunOpened):
            self.run = event.path
            self._step, self._steps = event.step, event.steps
            self.line.resume(STEPS, event.step, event.steps)
            self.line.expect(PREVIEWS, self._previews_after(event.step, event.steps))
            self.line.expect(HELD_OUT, self._measured_after(event.step, event.steps))
            self._train(event.step)
            remember(self.place, event.path, "running")
        elif isinstance(event, StepDone):
            self._loss = _number(event.loss)
            self._new.points.append((event.step, self._loss, event.lr))
            self._train(event.step, event.seconds)
        elif isinstance(event, Validated):
            self._new.held_out.append((event.step, _number(event.loss)))
            self._train(self._step)
        elif isinstance(event, CheckpointSaved):
            self._new.checkpoints.append(event.step)
        elif isinstance(event, PreviewSaved):
            self._new.previews.append(event.step)
            self._train(self._step)
        elif isinstance(event, Notice):
            self.notices.append(event.message)
            self._new.notices.append(event.message)

    def _train(self, step: int, seconds: float | None = None) -> None:
        self._step = step
        self.line.enter(STEPS, step, self._steps, seconds)
        self._at(STEPS, step, self._steps)

    def _at(self, phase: str, done: int, total: int, label: str = "") -> None:
        self._phase, self._label, self._done, self._total = phase, label or phase, done, total

    def _previews_after(self, step: int, steps: int) -> int:
        return _rounds(step, steps, self.config.preview.every) * len(self.config.preview.all_prompts)

    def _measured_after(self, step: int, steps: int) -> int:
        validation = self.config.validation
        return _rounds(step, steps, validation.every) if validation.held_out else 0

    def status(self, state: str) -> dict[str, Any]:
        """Where the run is, as the page is told."""
        used, left = self.memory.now(), self.line.left
        return {
            "prompt_id": self.training.prompt_id,
            "workflow": self.place.workflow,
            "name": self.config.name,
            "run": run_name(self.run),
            "state": state,
            "phase": self._phase,
            "label": self._label,
            "done": self._done,
            "total": self._total,
            "step": self._step,
            "steps": self._steps,
            "loss": self._loss,
            "pace": _round(self.line.pace(STEPS)),
            "fraction": round(self.line.fraction, 4),
            "elapsed": _round(self.line.elapsed),
            "left": _round(left),
            "measured": self.line.measured,
            "memory": used,
            "memory_peak": self.memory.peak,
            "device": self.memory.device.type,
        }

    def _send(self, state: str = "", **more: Any) -> None:
        with self._lock:
            new, self._new = self._new, _New([], [], [], [], [])
            wish = {"stop": "stopping", "pause": "pausing"}.get(self.training.wish, "running")
            status = {**self.status(state or wish), **more}
        self.training.status = {**status, "plan": self.plan, "notices": list(self.notices)}
        added = {name: values for name, values in vars(new).items() if values}
        self.node.send({**status, **added})

    def _send_on(self) -> None:
        while not self._closed.is_set():
            self._dirty.wait(_AT_LEAST_EVERY)
            self._dirty.clear()
            self._send()
            self._closed.wait(_SEND_EVERY)

    def reached(self, run: Path, step: int) -> None:
        """The run has a result, perhaps one that it had before."""
        with self._lock:
            if self.run is None:
                self._steps = self.config.total_steps(step)
            self.run, self._step = run, step

    def begin(self) -> None:
        self._thread.start()

    def end(self, state: str, message: str = "") -> None:
        """The last message."""
        self._closed.set()
        self._dirty.set()
        self._thread.join()
        if self.run is not None:
            with contextlib.suppress(StorageError):  # it must not take the place of what ended the training
                told = {"message": message, "plan": self.plan, "notices": "\n".join(self.notices)}
                remember(self.place, self.run, state, **told)
        self._send(state, message=message, **({"fraction": 1.0} if state == "finished" else {}))


@contextmanager
def reported(
    place: Place, training: ActiveRun, config: TrainConfig, dataset: Dataset
) -> Iterator[TrainingReport]:
    """Within the block the page is told of the training. Call `end` in it; what is raised is a failure."""
    report = TrainingReport(place, training, config, dataset)
    report.begin()
    try:
        yield report
    except BaseException as error:
        cancelled = not isinstance(error, Exception)
        report.end("cancelled" if cancelled else "failed", "" if cancelled else str(error))
        raise


def run_name(run: Path | None) -> str:
    """`<name>/<run>`, as Load Run lists it."""
    return f"{run.parent.name}/{run.name}" if run else ""


def _rounds(step: int, steps: int, every: int) -> int:
    """How often something is still to come that is due at step 0, every `every` steps and at the last one."""
    last = int(steps % every > 0 and step < steps)
    return steps // every - step // every + last + int(step == 0)


def _sampling(steps: int, cfg: float) -> float:
    """A picture in training steps: a pass forwards is a third of a step, and guidance takes two."""
    return 1 + steps * (1 if cfg == 1 else 2) / 3


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _round(value: float | None) -> float | None:
    return value if value is None else round(value, 3)
