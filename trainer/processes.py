"""Several processes that train one LoRA, by torch.distributed: `accelerate launch scripts/train.py JOB`.

Each has the whole frozen model, takes its part of every step's samples, and makes the update of all.
Gradients are added, not averaged: `objective.backward_batch` has divided by the samples of all processes.
Before they exchange anything they ask each other whether one has left, and hear why: nobody waits for one
that will not come.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import ConfigError, TrainingError

T = TypeVar("T")

_STATE = "IN_GRAPH_LORA_PROCESSES"
"""Environment variable: _JOINED, and _PARTED since one has left. The script and the pack that ComfyUI has
loaded are two copies of this module."""
_JOINED, _PARTED = "joined", "parted"
_ARRIVAL = timedelta(minutes=10)
"""In which all processes have to have started."""
_PATIENCE = timedelta(days=7)
"""For one that is busy: the main process draws previews while the others wait. One that has died is noticed
at once, for its connection is closed."""
_LONGEST = 1000
"""Bytes of what a process says of its end."""
_GO_ON, _WISH, _INTERRUPTED, _FAILED = range(4)


class Interrupted(BaseException):
    """Another process of the training was interrupted."""


class Processes:
    """This one among the processes of a training; nothing to do where it is the only one.

    Every method that asks the others has to be called by all, in one order. It raises TrainingError with what
    a process has said that failed, and Interrupted where one was interrupted.
    """

    def __init__(self, rank: int = 0, size: int = 1, near: tuple[int, int] = (0, 1)) -> None:
        """near: rank and size among those of this machine."""
        self.rank, self.size, self.near = rank, size, near

    @classmethod
    def current(cls) -> Processes:
        """Those that `join` has brought together."""
        if not os.environ.get(_STATE):
            return ALONE
        near = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return cls(dist.get_rank(), dist.get_world_size(), near)

    @property
    def main(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def any(self, wish: bool) -> bool:
        """Whether one of them has the wish."""
        return self._agree(_WISH if wish else _GO_ON) == _WISH if self.size > 1 else wish

    def wait(self) -> None:
        """Until all are here."""
        self.any(False)

    def share(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """What this one does of a work that is kept on disk, `wait` after each: its part of all, then of what
        is missing on its machine, which may have a disk of its own."""
        if self.size > 1:
            yield items[self.rank :: self.size]
            yield items[self.near[0] :: self.near[1]]

    def summed(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The sum of the losses; every gradient becomes that of all samples."""
        if self.size == 1:
            return loss
        self.wait()  # a device's own all-reduce would wait in vain for one that has left
        device = parameters[0].device
        given = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=device)
        grads = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        flat = torch.cat([*grads, given, loss.reshape(1).to(device)])
        flat = _carried(flat)
        self._all_reduce(flat)
        flat = flat.to(device)
        *sums, given, total = flat.split([*(p.numel() for p in parameters), len(parameters), 1])
        for p, own, there in zip(parameters, sums, given.tolist(), strict=True):
            p.grad = own.view_as(p) if there else None
        return total[0]

    def spread(self, parameters: Sequence[nn.Parameter]) -> None:
        """The main process's weights to all: on other devices they may have been rounded differently."""
        if self.size == 1:
            return
        self.wait()
        flat = _carried(torch.cat([p.detach().flatten() for p in parameters]))
        with _noticing():
            dist.broadcast(flat, 0)
        for p, own in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.data.copy_(own.view_as(p))

    def from_main(self, make: Callable[[], bytes]) -> bytes:
        """What `make` gives in the main process."""
        if self.size == 1:
            return make()
        data = make() if self.main else b""
        self.wait()
        length = torch.tensor([len(data)])
        with _noticing():
            dist.broadcast(length, 0)
            buffer = torch.zeros(int(length), dtype=torch.uint8)
            if data:
                buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            dist.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    def told(self, make: Callable[[], T]) -> T:
        """`from_main` for what JSON can say."""
        if self.size == 1:
            return make()
        return json.loads(self.from_main(lambda: json.dumps(make()).encode()))

    def check_same(self, own: Mapping[str, Any]) -> None:
        """Raises ConfigError in a process that has another of these than the main one."""
        theirs = self.told(lambda: dict(own))
        if other := [name for name in own if theirs.get(name) != own[name]]:
            raise ConfigError(
                f"{', '.join(other)}: not the same as in process 0; bring the same pack, models, pictures and"
                " job to every machine"
            )
        self.wait()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A process that leaves the block by an exception tells the others, whose next question ends."""
        try:
            yield
        except BaseException as error:
            if os.environ.get(_STATE) == _JOINED:
                failed = isinstance(error, Exception)
                with suppress(TrainingError, Interrupted):
                    self._agree(_FAILED if failed else _INTERRUPTED, str(error) if failed else "")
            raise

    def _agree(self, code: int, message: str = "") -> int:
        """The highest code. Raises what `_hear` does when one has left."""
        if os.environ.get(_STATE) == _PARTED:
            raise _lost()
        codes = torch.zeros(self.size, dtype=torch.int32)
        codes[self.rank] = code
        self._all_reduce(codes)
        if int(codes.max()) >= _INTERRUPTED:
            self._hear(codes.tolist(), message)
        return int(codes.max())

    def _hear(self, codes: Sequence[int], message: str) -> None:
        """What those have to say who left."""
        own = f"process {self.rank} on {platform.node()}: {message}".encode()[:_LONGEST]
        said = torch.zeros(self.size, _LONGEST, dtype=torch.uint8)
        said[self.rank, : len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        self._all_reduce(said)
        os.environ[_STATE] = _PARTED
        failed = [i for i, code in enumerate(codes) if code == _FAILED]
        if not failed:
            raise Interrupted
        raise TrainingError(bytes(said[failed[0]].tolist()).rstrip(b"\0").decode("utf-8", "ignore"))

    def _all_reduce(self, tensor: Tensor) -> None:
        with _noticing():
            dist.all_reduce(tensor)


ALONE = Processes()


def _carried(flat: Tensor) -> Tensor:
    """Where gloo can take it: it knows no devices but these."""
    return flat if flat.device.type in ("cpu", "cuda") else flat.cpu()


@contextmanager
def _noticing() -> Iterator[None]:
    """Of a process that died its connection is closed."""
    try:
        yield
    except RuntimeError as error:
        os.environ[_STATE] = _PARTED
        raise _lost() from error


def _lost() -> TrainingError:
    return TrainingError(
        "another process of this training has ended without a word; the same command goes on from the newest"
        " checkpoint"
    )


def join() -> Processes:
    """In a process that `accelerate launch` or torchrun has started: wait for the others.

    Gradients go by NCCL where the devices are CUDA's, of which each process has to see its own one first;
    everything else goes by gloo. Raises TrainingError.
    """
    if not dist.is_available():
        raise TrainingError("this torch was built without torch.distributed; train with one process")
    from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415 - not in every torch

    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=_ARRIVAL))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the {os.environ.get('WORLD_SIZE', '')} processes of this training do not find each other within"
            f" {_ARRIVAL.seconds // 60} minutes ({error}); start all of them, and let them reach"
            f" {os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        ) from error
    os.environ[_STATE] = _JOINED
    return Processes.current()
