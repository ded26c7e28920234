"""The trainings that are running now: what the page may ask of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_HISTORY = 2000

_running: dict[str, Running] = {}


class Running:
    """One training, as its node shows it."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._history: list[dict[str, Any]] = []

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def request_stop(self) -> None:
        """Stop and keep: end in order after the step, so that the nodes behind run with what there is."""
        self._stop.set()

    def add(self, progress: dict[str, Any]) -> None:
        """Keep what was sent to the page, for a page that is opened later; of a long run every other one."""
        if len(self._history) >= MAX_HISTORY:
            self._history = self._history[::2]
        self._history.append(progress)

    @property
    def history(self) -> list[dict[str, Any]]:
        return list(self._history)


@contextmanager
def running(node_id: str | None) -> Iterator[Running]:
    """For the length of the block `find(node_id)` gives the training."""
    training = Running()
    if node_id is not None:
        _running[node_id] = training
    try:
        yield training
    finally:
        if node_id is not None:
            _running.pop(node_id, None)


def find(node_id: str) -> Running | None:
    """None when that node trains nothing."""
    return _running.get(node_id)
