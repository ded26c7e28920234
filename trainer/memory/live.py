"""What a piece of work holds in memory: by torch's allocator on a GPU, by live tensors elsewhere."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ..devices import allocator, synchronize


class Live(Protocol):
    """Bytes above what was held when the watching began."""

    @property
    def now(self) -> int: ...

    @property
    def peak(self) -> int:
        """The most since `mark`."""
        ...

    def mark(self) -> None: ...


@contextmanager
def watched(device: torch.device) -> Iterator[Live]:
    """Within the block the device's memory is watched."""
    if (counts := allocator(device)) is not None:
        yield _Allocator(device, counts)
        return
    with _Storages() as storages:
        yield storages


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock time of a piece of work, not counting what watching adds to it."""
    with _disable_current_modes():
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start


class _Allocator:
    def __init__(self, device: torch.device, counts: Any) -> None:
        self.device, self._counts = device, counts
        gc.collect()
        self._start = counts.memory_allocated(device)
        self.mark()

    @property
    def now(self) -> int:
        return self._counts.memory_allocated(self.device) - self._start

    @property
    def peak(self) -> int:
        return self._counts.max_memory_allocated(self.device) - self._start

    def mark(self) -> None:
        self._counts.reset_peak_memory_stats(self.device)


class _Storages(TorchDispatchMode):
    """Counts the storages that operations make, from their making until nothing holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def mark(self) -> None:
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(returned.alias_info for returned in func._schema.returns):  # no view, no write in place
            for value in tree_leaves(out):
                if type(value) is Tensor:
                    self._add(value.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size == 0:
            return

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
