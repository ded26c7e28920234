"""A run's events for TensorBoard, where tensorboard is installed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..events import Emit, Event, Judged, Notice, PreviewSaved, StepDone, Validated


class Board:
    """Scalars and previews below `<run>/tensorboard`; nothing without the library."""

    def __init__(self, run: Path, emit: Emit) -> None:
        self._folder, self._emit = run / "tensorboard", emit
        self._writer: Any = None

    def open(self, step: int) -> None:
        """step: what the run has reached; later entries of an earlier process are dropped."""
        if find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        with self._or_without():
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else None)

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        """The run's own files are what counts: without TensorBoard's it goes on."""
        try:
            yield
        except OSError as error:
            self._writer = None
            self._emit(Notice(message=f"TensorBoard's log cannot be written ({error}); going on without it"))

    def add(self, event: Event) -> None:
        if self._writer is not None:
            with self._or_without():
                self._add(event)

    def _add(self, event: Event) -> None:
        if isinstance(event, StepDone) and math.isfinite(event.loss):
            for name in ("loss", "lr", "grad_norm"):
                self._writer.add_scalar(f"train/{name}", getattr(event, name), event.step)
        elif isinstance(event, Validated):
            self._writer.add_scalar("validation/loss", event.loss, event.step)
        elif isinstance(event, Judged):
            for key, value in event.figures.items():
                self._writer.add_scalar(f"judge/{key}", value, event.step)
        elif isinstance(event, PreviewSaved):
            for i, path in enumerate(event.paths, start=1):
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self._writer.add_image(f"preview/{i}", pixels, event.step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            with self._or_without():
                self._writer.close()
