"""Less memory on the device: what checkpointed blocks keep waits in host memory.

A checkpointed block keeps its inputs until it is computed again. Here they leave as the block begins, on a
stream of their own, and come back one block ahead of their turn, in the reverse order. What several blocks
are given leaves once. So the device holds the inputs of the newest block and, on the way back, those of the
next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import ModelError

SMALL = 2**20
"""Bytes; what has fewer stays on the device."""

_PINNED_SHARE = 0.25
"""Of the free host memory, at most; what is more goes to memory that is not pinned."""


@contextmanager
def offloaded(
    device: torch.device, wanted: bool = True, make: Callable[[torch.device], Copies] | None = None
) -> Iterator[Offload | None]:
    """For `checkpointed`, whose blocks' inputs on `device` wait in host memory then. None if not wanted."""
    if not wanted:
        yield None
        return
    offload = Offload(device, (make or (CudaCopies if device.type == "cuda" else Copies))(device))
    try:
        yield offload
    finally:
        offload.let_go()
        offload.copies.finish()


@dataclass(eq=False)
class Away:
    """A tensor in host memory, and the shape that it comes back in."""

    host: Tensor
    """Its values, those of expanded dimensions once."""
    stride: tuple[int, ...]
    """On the device, of host's shape."""
    size: torch.Size


@dataclass(frozen=True, eq=False)
class Here:
    """The tensor on the device, and the event at which its copy is done."""

    tensor: Tensor
    event: Any
    version: int


@dataclass(eq=False)
class Inputs:
    """What one block keeps in host memory."""

    away: list[Away] = field(default_factory=list)


class Offload:
    """The inputs of checkpointed blocks, between their forward pass and their recomputation."""

    def __init__(self, device: torch.device, copies: Copies) -> None:
        self.device, self.copies = device, copies
        self._order: list[ReferenceType[Inputs]] = []
        """As in the forward pass; those whose turn has come are out of it."""
        self._known: dict[Hashable, tuple[StorageWeakRef, ReferenceType[Away]]] = {}
        self._here: dict[Away, Here] = {}
        self._turn: Inputs | None = None

    @contextmanager
    def block(self) -> Iterator[None]:
        """Around the checkpoint of one block: autograd saves nothing but the block's inputs in there."""
        self._check()
        self.let_go()
        self._order = [r for r in self._order if r() is not None]
        self._known = {k: (s, r) for k, (s, r) in self._known.items() if not s.expired() and r() is not None}
        inputs = Inputs()
        self._order.append(ref(inputs))
        with saved_tensors_hooks(lambda t: self._leave(t, inputs), self._come):
            yield

    def let_go(self) -> None:
        """Of what is on the device, once it has been copied."""
        for here in self._here.values():
            self.copies.wait(here.event)
        self._here, self._turn = {}, None

    def _check(self) -> None:
        """A copy that was under way may have the old values or the new ones."""
        if any(here.tensor._version != here.version for here in self._here.values()):
            self.let_go()
            raise ModelError(
                "the network overwrites in place what it has given to a checkpointed block, whose gradients"
                " need it; set gradient checkpointing and streamed to 0 (off)"
            )

    @property
    def waiting(self) -> list[Inputs]:
        return [inputs for r in self._order if (inputs := r()) is not None]

    def _leave(self, tensor: Tensor, inputs: Inputs) -> Tensor | tuple[Away, Inputs]:
        part = _once(tensor.detach())
        plain = type(tensor) is Tensor and _place(tensor.device) == _place(self.device)
        if not plain or part.nbytes < SMALL or not _apart(part):
            return tensor
        away = self._away(tensor, part)
        inputs.away.append(away)
        return away, inputs

    def _away(self, tensor: Tensor, part: Tensor) -> Away:
        storage = StorageWeakRef(tensor.untyped_storage())
        key = (
            storage.cdata,
            tensor.storage_offset(),
            tensor.size(),
            tensor.stride(),
            tensor.dtype,
            tensor._version,
        )
        if key in self._known and (known := self._known[key][1]()) is not None:
            return known
        kept = {away for inputs in self.waiting for away in inputs.away}
        host, event = self.copies.leave(part, sum(away.host.nbytes for away in kept))
        away = Away(host, part.stride(), tensor.size())
        self._known[key] = storage, ref(away)
        self._here[away] = Here(tensor.detach(), event, tensor._version)
        return away

    def _come(self, packed: Tensor | tuple[Away, Inputs]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        away, inputs = packed
        if self._turn is not inputs:
            self._begin(inputs)
        return self._here[away].tensor

    def _begin(self, inputs: Inputs) -> None:
        """These are there for what the device is given from now on, and the next ones are sent for."""
        self._check()
        waiting = self.waiting
        if inputs in waiting:
            del waiting[waiting.index(inputs) :]
        ahead = waiting[-1].away if waiting else []
        here = {away: self._here.get(away) or self._bring(away) for away in inputs.away}
        for found in (*self._here.values(), *here.values()):  # also what goes without having been used
            self.copies.wait(found.event)
        self._here = here | {away: self._here[away] for away in ahead if away in self._here}
        for away in ahead:
            if away not in self._here:
                self._here[away] = self._bring(away)
        self._order, self._turn = [ref(w) for w in waiting], inputs

    def _bring(self, away: Away) -> Here:
        there, event = self.copies.bring(away.host, away.stride, self.device)
        return Here(there.expand(away.size), event, there._version)


class Copies:
    """Both ways. On a CPU a copy is done when the call returns."""

    def __init__(self, device: torch.device) -> None:
        pass

    def leave(self, tensor: Tensor, kept: int) -> tuple[Tensor, Any]:
        """kept: bytes that are in host memory already. Returns the copy and the event at which it is done."""
        return torch.empty_like(tensor, device="cpu").copy_(tensor), None

    def bring(self, host: Tensor, stride: tuple[int, ...], device: torch.device) -> tuple[Tensor, Any]:
        there = torch.empty_strided(host.shape, stride, dtype=host.dtype, device=device)
        return there.copy_(host), None

    def wait(self, event: Any) -> None:
        """What the device is given from now on runs after the event."""

    def finish(self) -> None:
        pass


class CudaCopies(Copies):
    """On a stream of its own, to pinned memory as far as there is."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pinned_bytes = int(psutil.virtual_memory().available * _PINNED_SHARE)

    def leave(self, tensor: Tensor, kept: int) -> tuple[Tensor, Any]:
        host = self._host(tensor, kept)
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            host.copy_(tensor, non_blocking=True)
            return host, self.stream.record_event()

    def _host(self, tensor: Tensor, kept: int) -> Tensor:
        if kept + tensor.nbytes <= self.pinned_bytes:
            try:
                return torch.empty_like(tensor, device="cpu", pin_memory=True)
            except RuntimeError:
                self.pinned_bytes = kept
                logging.getLogger(__name__).warning(
                    "no more than %.0f MB of pinned memory for activations: steps take longer; close other"
                    " programs",
                    kept / 2**20,
                )
        return torch.empty_like(tensor, device="cpu")

    def bring(self, host: Tensor, stride: tuple[int, ...], device: torch.device) -> tuple[Tensor, Any]:
        there = torch.empty_strided(host.shape, stride, dtype=host.dtype, device=device)
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            there.copy_(host, non_blocking=True)
            return there, self.stream.record_event()

    def wait(self, event: Any) -> None:
        torch.cuda.current_stream(self.stream.device).wait_event(event)

    def finish(self) -> None:
        self.stream.synchronize()


def _place(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0


def _once(tensor: Tensor) -> Tensor:
    """Expanded dimensions narrowed to one."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _apart(tensor: Tensor) -> bool:
    """No two elements in one place."""
    reach = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size > 1:
            if stride < reach:
                return False
            reach += (size - 1) * stride
    return True
