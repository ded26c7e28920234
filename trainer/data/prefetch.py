"""Batches come from disk while the network is busy with the ones before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress

from .batches import BatchToLoad, MicroBatch

AHEAD = 2
"""Batches that wait, loaded."""

_PATIENCE = 0.2
"""Seconds between two looks at whether someone has given up."""


def prefetched(
    batches: Iterator[BatchToLoad], check_interrupt: Callable[[], None], ahead: int = AHEAD
) -> Generator[MicroBatch]:
    """The batches in their order, loaded by one thread.

    What loading raises is raised here, where its batch is due. The thread ends when the generator is closed.
    """
    with closing(_Loader(batches, ahead)) as loader:
        while (item := loader.next(check_interrupt)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


class _Loader:
    def __init__(self, batches: Iterator[BatchToLoad], ahead: int) -> None:
        self._batches = batches
        self._waiting: queue.Queue[MicroBatch | BaseException | None] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="in-graph-lora batches", daemon=True)
        self._thread.start()

    def next(self, check_interrupt: Callable[[], None]) -> MicroBatch | BaseException | None:
        """None after the last batch."""
        while True:
            try:
                return self._waiting.get(timeout=_PATIENCE)
            except queue.Empty:
                check_interrupt()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            for batch in self._batches:
                if self._closed.is_set():
                    return
                self._hand_over(batch.load())
            self._hand_over(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the batch is due
            self._hand_over(error)

    def _hand_over(self, item: MicroBatch | BaseException | None) -> None:
        taken = False
        while not taken and not self._closed.is_set():
            with suppress(queue.Full):
                self._waiting.put(item, timeout=_PATIENCE)
                taken = True
