"""The trainings that go on now: what the page may ask of them, and what ComfyUI's cache must know."""

from __future__ import annotations

import bisect
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_HISTORY = 2000

_active: dict[str, ActiveRun] = {}
_stops: Counter[str] = Counter()


class ActiveRun:
    """One training, as its node shows it. Written by the training's thread, read by the server's."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._history: list[tuple[int, str]] = []
        """(step, progress as JSON), by step. Replaced whole when it is thinned out, never changed."""

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def request_stop(self) -> None:
        """Stop and keep: end in order after the step, so that the nodes behind run with what there is."""
        self._stop.set()

    def add(self, progress: dict[str, Any]) -> None:
        """Keep what was sent to the page, for a page that is opened later; of a long run every other one.

        Encoded once, here: however often the page asks, the training is not held up.
        """
        history = self._history[::2] if len(self._history) >= MAX_HISTORY else self._history
        self._history = [*history, (progress["step"], json.dumps(progress))]

    def history(self, since: int = -1) -> str:
        """What was sent after this step, as a JSON list."""
        entries = self._history
        first = bisect.bisect_right(entries, since, key=lambda entry: entry[0])
        return f"[{','.join(text for _, text in entries[first:])}]"


@contextmanager
def active(node_id: str | None) -> Iterator[ActiveRun]:
    """For the length of the block `find(node_id)` gives the training."""
    training = ActiveRun()
    if node_id is not None:
        _active[node_id] = training
    try:
        yield training
    finally:
        if node_id is not None:
            _active.pop(node_id, None)


def find(node_id: str) -> ActiveRun | None:
    """None when that node trains nothing."""
    return _active.get(node_id)


def record_stop(name: str) -> None:
    """A run of this name has ended before its last step, and is gone on with when the graph runs again."""
    _stops[name.strip()] += 1


def stops(name: str | None) -> int:
    """How often runs of this name were stopped since ComfyUI started; of all names for None.

    ComfyUI keeps the outputs of a node that has nothing new. Counting up is something new, once: the next run
    goes on, and when it has ended its outputs are kept like any others.
    """
    return _stops.total() if name is None else _stops[name.strip()]
