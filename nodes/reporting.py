"""Events of a run → progress bar and text on the node, websocket events for the loss curve."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..trainer.events import Event, Notice, Phase, Planned, PreviewSaved, StepDone, Validated
from ..trainer.host.active import ActiveRun
from ..trainer.host.progress import NodeProgress

_SEND_EVERY = 0.2  # seconds: the page redraws for every event


class Reporter:
    """Call it with events. `notices` collects what the user must be told at the end too."""

    def __init__(self, node_id: str | None, training: ActiveRun) -> None:
        self.progress = NodeProgress(node_id)
        self.training = training
        self.notices: list[str] = []
        self.plan = ""
        self._sent = 0.0
        self._done, self._of = 0, 1

    def __call__(self, event: Event) -> None:
        if isinstance(event, Phase):
            self.progress.update(event.done, event.total)
            self.progress.text(f"{event.name} {event.done + 1}/{event.total}")
        elif isinstance(event, Planned):
            self.plan = event.line
            self.progress.text(event.line)
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, PreviewSaved):
            self._show(event.paths)
        elif isinstance(event, Validated):
            self._send({"step": event.step, "held_out": _number(event.loss), "best": event.best})
        elif isinstance(event, Notice):
            self.notices.append(event.message)
            self.progress.text(event.message)

    def _step(self, event: StepDone) -> None:
        self._done, self._of = event.step, event.steps
        self.progress.update(event.step, event.steps)
        now = time.monotonic()
        if event.step < event.steps and now - self._sent < _SEND_EVERY:
            return
        self._sent = now
        self._send(
            {
                "step": event.step,
                "steps": event.steps,
                "loss": _number(event.loss),
                "lr": event.lr,
                "seconds": event.seconds,
            }
        )

    def _send(self, progress: dict[str, Any]) -> None:
        self.training.add(progress)
        self.progress.send(progress)

    def _show(self, paths: Sequence[Path]) -> None:
        """The newest pictures of the run, side by side on the node."""
        pictures = []
        for path in paths:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        sheet = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
        x = 0
        for picture in pictures:
            sheet.paste(picture, (x, 0))
            x += picture.width
        self.progress.update(self._done, self._of, preview=sheet)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN
