"""Less memory on the device: frozen blocks stay in host memory and come for their turn.

A block comes for its forward pass and, being checkpointed, once more when it is computed again for the
gradients. It is frozen, so nothing goes back. Blocks take turns in a ring of two buffers: while one computes,
the next one in the present direction is copied. When a buffer is filled again, the device has been given all
work on the block that lay in it: a pass goes through the blocks in order, and its gradients in reverse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from .blocks import replaced_forward

SLOTS = 2
_ALIGNMENT = 256
"""Bytes; the most that kernels ask of a tensor's address."""

PINNED_BYTES = 256 * 2**20
"""What a ring takes of pinned host memory at most; what is not pinned goes to a GPU through it in pieces."""
_PINNED_SHARE = 0.05
"""Of the free host memory."""
_LEAST_PINNED = 2**20


def spread(count: int, share: float) -> list[int]:
    """Indices of ⌈share · count⌉ blocks, evenly: those between them compute while one is copied."""
    wanted = min(count, -int(-share * count // 1))
    return [i for i in range(count) if (i + 1) * wanted // count > i * wanted // count]


@contextmanager
def streamed(
    blocks: Sequence[Packed], device: torch.device, make: Callable[..., Ring] | None = None
) -> Iterator[Ring | None]:
    """The parameters of `blocks` come to `device` for each forward pass. None without blocks.

    To be entered before `checkpointed`, which these blocks need: autograd would keep what comes.
    """
    if not blocks:
        yield None
        return
    with ExitStack() as stack:
        ring = (make or Ring)(blocks, device)
        stack.callback(ring.close)
        for i, packed in enumerate(blocks):
            forward = _visiting(ring, i, packed.block.forward)
            stack.enter_context(replaced_forward(packed.block, forward))
        yield ring


def _visiting(ring: Ring, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    packed = ring.blocks[index]

    def streamed_forward(*args: Any, **kwargs: Any) -> Any:
        packed.put(ring.come(index))
        try:
            return forward(*args, **kwargs)
        finally:
            # Gradients of quantised layers read the weight once more, until the buffer is filled again.
            if not _within_backward():
                packed.put_back()
            ring.go_on(index)

    return streamed_forward


def _within_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


class Ring:
    """Buffers of the largest block's size on the device, and what lies in them."""

    def __init__(self, blocks: Sequence[Packed], device: torch.device) -> None:
        self.blocks = blocks
        self.device = device
        self.nbytes = max(block.nbytes for block in self.blocks)
        """Of one buffer."""
        count = min(SLOTS, len(self.blocks))
        self.slots = [torch.empty(self.nbytes, dtype=torch.uint8, device=device) for _ in range(count)]
        self.moved = 0
        """Bytes that came to the device so far."""
        self._holds: list[int | None] = [None] * count
        self._arrival: list[Future[Any] | None] = [None] * count
        self._used = 0
        """The slot of the newest visitor."""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="in-graph-lora-ring")
        self._copies = _CudaCopies(device, self.nbytes) if device.type == "cuda" else _Copies()
        self.pinned_bytes = self._copies.pinned_bytes

    def come(self, index: int) -> list[Tensor]:
        """The block's parameters on the device, to be used on the present stream until another one comes."""
        slot = self._holds.index(index) if index in self._holds else self._fetch(index)
        arrival = self._arrival[slot]
        assert arrival is not None
        try:
            self._copies.wait(arrival.result())
        except BaseException:
            self._holds[slot] = None
            raise
        self._used = slot
        return self.blocks[index].views(self.slots[slot])

    def go_on(self, index: int) -> None:
        """All work on this block is given to the device: the next one is sent for."""
        after = self._next(index)
        if len(self.slots) > 1 and after not in self._holds:
            self._fetch(after)

    def _next(self, index: int) -> int:
        """Of the block whose turn is next; at the end of a pass it is there, for the way back."""
        last = len(self.blocks) - 1
        if _within_backward():
            return max(index - 1, 0)
        if index == last and not torch.is_grad_enabled():  # no way back: the next pass begins in front
            return 0
        return min(index + 1, last)

    def _fetch(self, index: int) -> int:
        """Begin to copy into the slot that is not in use."""
        slot = (self._used + 1) % len(self.slots)
        if (before := self._arrival[slot]) is not None:
            with suppress(Exception):  # of a block that is wanted no more
                before.result()
        if (gone := self._holds[slot]) is not None:
            self.blocks[gone].put_back()
        self._holds[slot] = index
        self.moved += self.blocks[index].nbytes
        self._arrival[slot] = self._worker.submit(self._fill, slot, index, self._copies.now())
        return slot

    def _fill(self, slot: int, index: int, since: Any) -> Any:
        """In the worker: copy once the device has finished what it was given before. Returns the arrival."""
        with torch.no_grad():
            return self._copies.copy(self.blocks[index].leaves, self.slots[slot], since)

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._copies.finish()
        for block in self.blocks:
            block.put_back()
        self.slots.clear()


class _Copies:
    """On a CPU a copy is done when the call returns."""

    pinned_bytes = 0

    def now(self) -> Any:
        return None

    def copy(self, leaves: Sequence[Leaf], slot: Tensor, since: Any) -> Any:
        for leaf in leaves:
            slot[leaf.offset : leaf.end].copy_(leaf.flat)

    def wait(self, arrival: Any) -> None:
        pass

    def finish(self) -> None:
        pass


class _CudaCopies(_Copies):
    """On a stream of its own; what is not pinned goes through two pinned buffers, piece by piece."""

    def __init__(self, device: torch.device, largest: int) -> None:
        self.stream = torch.cuda.Stream(device)
        most = min(PINNED_BYTES, int(psutil.virtual_memory().available * _PINNED_SHARE), SLOTS * largest)
        self.staging = _pinned(most // 2)
        self.pinned_bytes = sum(buffer.numel() for buffer in self.staging)
        self._free: list[Any] = [None] * len(self.staging)
        self._turn = 0

    def now(self) -> Any:
        return torch.cuda.current_stream(self.stream.device).record_event()

    def copy(self, leaves: Sequence[Leaf], slot: Tensor, since: Any) -> Any:
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(since)
            for leaf in leaves:
                flat, target = leaf.flat, slot[leaf.offset : leaf.end]
                if self.staging and not flat.is_pinned():
                    self._in_pieces(flat, target)
                else:
                    target.copy_(flat, non_blocking=True)
            return self.stream.record_event()

    def _in_pieces(self, source: Tensor, target: Tensor) -> None:
        size = self.staging[0].numel()
        for part, goal in zip(source.split(size), target.split(size), strict=True):
            i = self._turn = (self._turn + 1) % len(self.staging)
            if (free := self._free[i]) is not None:
                free.synchronize()
            piece = self.staging[i][: part.numel()]
            piece.copy_(part)
            goal.copy_(piece, non_blocking=True)
            self._free[i] = self.stream.record_event()

    def wait(self, arrival: Any) -> None:
        torch.cuda.current_stream(self.stream.device).wait_event(arrival)

    def finish(self) -> None:
        self.stream.synchronize()


def _pinned(size: int) -> list[Tensor]:
    """Two buffers of pinned memory; smaller ones, or none, where the machine gives less, which is told."""
    wanted, buffers = size, []
    while not buffers and size >= _LEAST_PINNED:
        try:
            buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        except RuntimeError:
            size //= 2
    if wanted >= _LEAST_PINNED and (not buffers or size < wanted):
        got = f"{2 * size / 2**20:.0f} MB" if buffers else "none"
        logging.getLogger(__name__).warning(
            "streaming wanted %.0f MB of pinned memory and got %s: steps take longer; close other programs",
            2 * wanted / 2**20,
            got,
        )
    return buffers


@dataclass(frozen=True)
class Leaf:
    """A plain tensor of a block, and where it lies among the block's bytes."""

    tensor: Tensor
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.tensor.numel() * self.tensor.element_size()

    @property
    def flat(self) -> Tensor:
        """Its bytes in the order of the storage, [n] uint8."""
        t = self.tensor
        return t.as_strided((t.numel(),), (1,), t.storage_offset()).view(torch.uint8)

    def within(self, slot: Tensor) -> Tensor:
        """The same tensor over the bytes of a slot."""
        t, part = self.tensor, slot[self.offset : self.end].view(self.tensor.dtype)
        return part.as_strided(t.shape, t.stride(), part.storage_offset())


class Packed:
    """The frozen parameters of a block, one after the other."""

    def __init__(self, block: nn.Module) -> None:
        """Adapters that are put into the block later are not among them."""
        self.block = block
        self.places: list[tuple[dict[str, Any], str, Tensor]] = []
        """Where each parameter is, and what is there between visits."""
        self.leaves: list[Leaf] = []
        self.nbytes = 0
        for module in block.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not parameter.requires_grad and _can_be_packed(parameter):
                    self.places.append((module._parameters, name, parameter))
                    _mapped(parameter, self._pack)

    def _pack(self, tensor: Tensor) -> Tensor:
        if not _dense(tensor):
            tensor = tensor.contiguous()
        leaf = Leaf(tensor, self.nbytes)
        self.leaves.append(leaf)
        self.nbytes = -(-leaf.end // _ALIGNMENT) * _ALIGNMENT
        return tensor

    def put(self, parameters: Sequence[Tensor]) -> None:
        """These in `places`, until `put_back`."""
        for (store, name, _), parameter in zip(self.places, parameters, strict=True):
            store[name] = parameter

    def put_back(self) -> None:
        self.put([parameter for _, _, parameter in self.places])

    def views(self, slot: Tensor) -> list[Tensor]:
        """The parameters of `places`, over the bytes of a slot."""
        leaves = iter(self.leaves)
        return [_mapped(parameter, lambda _: next(leaves).within(slot)) for _, _, parameter in self.places]


def _mapped(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The tensor with its plain parts changed: itself, or the packed values and scales of a quantised one."""
    if type(tensor) is nn.Parameter:
        return nn.Parameter(change(tensor.detach()), requires_grad=False)
    if type(tensor) is Tensor:
        return change(tensor)
    names, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    parts = {name: _mapped(getattr(tensor, name), change) for name in names}
    return type(tensor).__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())  # type: ignore[attr-defined]


def _can_be_packed(tensor: Tensor) -> bool:
    """Tensors of another class, like the GGUF pack's, are brought to the device by their own layers."""
    return type(tensor) in (Tensor, nn.Parameter) or hasattr(tensor, "__tensor_flatten__")


def _dense(tensor: Tensor) -> bool:
    """No gap and no element twice, so that the storage's bytes are the tensor's."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
