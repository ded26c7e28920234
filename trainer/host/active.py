"""The trainings that go on now: what the page may ask of them, and what ComfyUI's cache must know."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comfy_execution.graph_utils import ExecutionBlocker

if TYPE_CHECKING:
    from ..runs.result import Result


def nothing_yet() -> ExecutionBlocker:
    """An output behind which no node runs."""
    return ExecutionBlocker(None)


_active: dict[str, ActiveRun] = {}
_stops: Counter[str] = Counter()
_paused: dict[Path, Result] = {}

Wish = Literal["", "stop", "pause"]


class ActiveRun:
    """One training. Written by the training's thread, read by the server's."""

    def __init__(self, prompt_id: str = "") -> None:
        self.prompt_id = prompt_id
        self.wish: Wish = ""
        self.status: dict[str, Any] = {}
        """What the page was told last. Replaced whole, never changed."""
        self._ending = threading.Event()

    def stop_requested(self) -> bool:
        return self._ending.is_set()

    def end(self, wish: Wish) -> None:
        """End in order after the step, and keep what there is.

        stop: the nodes behind run with it. pause: the queue item ends here.
        """
        self.wish = wish
        self._ending.set()


@contextmanager
def active(node_id: str | None, prompt_id: str = "") -> Iterator[ActiveRun]:
    """For the length of the block `find(node_id)` gives the training."""
    training = ActiveRun(prompt_id)
    if node_id is not None:
        _active[node_id] = training
    try:
        yield training
    finally:
        if node_id is not None:
            _active.pop(node_id, None)


def find(node_id: str, prompt_id: str = "") -> ActiveRun | None:
    """None when that node trains nothing, or for another prompt than the one that is named."""
    training = _active.get(node_id)
    return training if training and prompt_id in ("", training.prompt_id) else None


def record_stop(name: str) -> None:
    """A run of this name has ended before its last step, and is gone on with when the graph runs again."""
    _stops[name.strip()] += 1


def stops(name: str | None) -> int:
    """How often runs of this name were stopped since ComfyUI started; of all names for None.

    ComfyUI keeps the outputs of a node that has nothing new. Counting up is something new, once: the next run
    goes on, and when it has ended its outputs are kept like any others.
    """
    return _stops.total() if name is None else _stops[name.strip()]


def pause(result: Result) -> None:
    """Until `go_on` the run gives this result instead of being trained further."""
    _paused[result.run] = result


def paused(run: Path) -> Result | None:
    """What a paused run has so far."""
    return _paused.get(run)


def go_on(run: Path) -> bool:
    """The next time its graph runs the run is trained further. False when it was not paused."""
    result = _paused.pop(run, None)
    if result is not None:
        record_stop(run.parent.name)
    return result is not None
