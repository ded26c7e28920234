from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from in_graph_lora.trainer.data.batches import BatchToLoad, CachedSample, Showing
from in_graph_lora.trainer.data.prefetch import AHEAD, prefetched


class Slow:
    """Stands for a sample on disk."""

    repeats, bucket, caption = 1, (1,), ""

    def __init__(self, i: int, loaded: list[int], fails: bool = False) -> None:
        self.key, self.i, self.loaded, self.fails = str(i), i, loaded, fails

    def load(self, showing: Showing | None = None) -> CachedSample:
        if self.fails:
            raise OSError("gone")
        self.loaded.append(self.i)
        return CachedSample(latent=torch.zeros(1), conditioning=None, key=self.key)


def _batches(loaded: list[int], fails_at: int = -1, count: int = 10**9) -> Iterator[BatchToLoad]:
    for i in range(count):
        sample = Slow(i, loaded, i == fails_at)
        yield BatchToLoad(samples=[sample], class_samples=[], share=1.0, class_share=1.0, seed=0, number=i)


def _threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "in-graph-lora batches"]


def test_batches_come_in_order_and_only_a_few_are_loaded_ahead() -> None:
    loaded: list[int] = []
    with closing(prefetched(_batches(loaded), lambda: None)) as batches:
        assert [next(batches).samples[0].key for _ in range(20)] == [str(i) for i in range(20)]
        time.sleep(0.1)
        assert len(loaded) <= 20 + AHEAD + 1
    assert not _threads()


def test_an_error_comes_where_its_batch_is_due() -> None:
    batches = prefetched(_batches([], fails_at=3), lambda: None)
    assert [next(batches).samples[0].key for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(OSError, match="gone"):
        next(batches)
    assert not _threads()


def test_an_interrupt_gets_through_while_a_batch_takes_long() -> None:
    go = threading.Event()

    class Stuck(Slow):
        def load(self, showing: Showing | None = None) -> CachedSample:
            go.wait(5)
            return super().load(showing)

    def stuck() -> Iterator[BatchToLoad]:
        yield BatchToLoad(
            samples=[Stuck(0, [])], class_samples=[], share=1.0, class_share=1.0, seed=0, number=0
        )

    class Stop(BaseException):
        pass

    def interrupt() -> None:
        go.set()
        raise Stop

    with pytest.raises(Stop):
        next(prefetched(stuck(), interrupt))
    assert not _threads()


def test_it_ends_after_the_last_batch() -> None:
    assert len(list(prefetched(_batches([], count=7), lambda: None))) == 7
    assert not _threads()
