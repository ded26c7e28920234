"""What a training step costs: time, memory, samples sent through the network."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from in_graph_lora.trainer.memory import streaming
from in_graph_lora.trainer.memory.streaming import Ring

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Duration:
    wall: float
    cpu: float


@dataclass(frozen=True)
class Instant:
    wall: float
    cpu: float
    """User and system time of all threads of this process."""

    @classmethod
    def now(cls) -> Instant:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def until(self, end: Instant) -> Duration:
        return Duration(end.wall - self.wall, end.cpu - self.cpu)


class Memory:
    """Peak above what is in use at the start: of the process on the CPU, of torch's allocator on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what was freed by then is not in use
            CLEAR_REFS.write_text("5")  # the high-water mark begins here
        self.start = _resident("VmRSS")

    def peak(self) -> int:
        """Bytes."""
        return torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM")

    def reserved(self) -> int:
        """Bytes that torch took from the card at most; 0 on the CPU."""
        return torch.cuda.max_memory_reserved() if self.cuda else 0


class Rings:
    """Within the block: what streams blocks to the device, and how much they move."""

    def __enter__(self) -> Rings:
        self.made: list[Ring] = []
        made, self._ring = self.made, streaming.Ring

        class Noted(Ring):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.buffers = len(self.slots)
                made.append(self)

        streaming.Ring = Noted  # type: ignore[misc]
        return self

    def __exit__(self, *error: object) -> None:
        streaming.Ring = self._ring  # type: ignore[misc]

    def figures(self, steps: int) -> dict[str, int]:
        """Bytes. moved: to the device in a step; arena: of the ring's buffers; away: of all its blocks."""
        return {
            "moved": sum(ring.moved for ring in self.made) // steps,
            "arena": sum(ring.buffers * ring.nbytes for ring in self.made),
            "pinned": sum(ring.pinned_bytes for ring in self.made),
            "away": sum(block.nbytes for ring in self.made for block in ring.blocks),
            "blocks": sum(len(ring.blocks) for ring in self.made),
        }


class MatrixRate:
    """What the device makes of one large product: the rate that a training step can reach at most."""

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        side, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(13):
            start = Instant.now()
            a @ b
            seconds.append(start.until(Instant.now()).wall)
        self.flops_per_second = 2 * side**3 / median(seconds[3:])


def cap(gigabytes: float) -> None:
    """From now on the card has only so much memory, for torch and for who asks torch how much there is."""
    most = int(gigabytes * 2**30)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / total))

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        return max(0, most - torch.cuda.memory_reserved(device)), most

    torch.cuda.mem_get_info = mem_get_info


def _resident(field_name: str) -> int:
    if not STATUS.exists():  # no /proc: the peak of the whole life, and so of loading too
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(field_name + ":"))
    return int(line.split()[1]) * 1024


class Turns:
    """Threads that take turns: one step each."""

    def __init__(self, count: int) -> None:
        self.waiting = [threading.Semaphore(0) for _ in range(count)]
        self.left: set[int] = set()

    def start(self) -> None:
        self.waiting[0].release()

    def wait(self, i: int) -> None:
        self.waiting[i].acquire()

    def hand_on(self, i: int) -> None:
        count = len(self.waiting)
        after = ((i + n) % count for n in range(1, count + 1))
        if (following := next((j for j in after if j not in self.left), None)) is not None:
            self.waiting[following].release()

    def leave(self, i: int) -> None:
        """Done, or failed: the others go on without it."""
        self.left.add(i)
        self.hand_on(i)


@dataclass
class Meter:
    """Ends a step where an optimizer of this thread has made its step, whoever's loop that is.

    After each step two passes through the network without gradient are timed: on a machine that others use
    too, a step compares with what runs right beside it.
    """

    network: type[nn.Module]
    device: torch.device
    forward: Callable[[], None] | None
    """One pass of the same batch without gradient and without adapter; None: no floor is measured."""
    pause: Callable[[], None] = lambda: None
    """Called between the steps."""
    steps: list[Duration] = field(default_factory=list)
    floors: list[Duration] = field(default_factory=list)
    """Of each step: the time of two passes."""
    samples: int = 0
    """Rows that the first step sent through the network, recomputation not counted."""
    added_memory: int = 0
    peak_memory: int = 0
    reserved_memory: int = 0

    def __enter__(self) -> Meter:
        self._memory = Memory(self.device)
        self._counting = register_module_forward_pre_hook(self._count)
        self._ending = register_optimizer_step_post_hook(self._end)
        self._thread = threading.get_ident()
        self._start = Instant.now()
        return self

    def __exit__(self, *error: object) -> None:
        self.peak_memory, self.reserved_memory = self._memory.peak(), self._memory.reserved()
        self.added_memory = self.peak_memory - self._memory.start
        self._counting.remove()
        self._ending.remove()

    def _count(self, module: nn.Module, args: tuple) -> None:
        if type(module) is self.network:
            self.samples += len(args[0])

    def _end(self, *_: object) -> None:
        if threading.get_ident() != self._thread:
            return
        self._counting.remove()  # it is in the way of every module's call
        end = Instant.now()
        self.steps.append(self._start.until(end))
        if self.forward is not None:
            self.forward()
            self.forward()
            self.floors.append(end.until(Instant.now()))
        self.pause()
        self._start = Instant.now()
