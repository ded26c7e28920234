"""One step of a run, tried out on the real model before anything is encoded: `memory.plan` computes with it.

Each kind of block (class, shapes, adapters) goes forward and backward once by itself with the inputs that the
network gives it; then a whole step is made with every block checkpointed. The adapters are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .adapters.start import StartingLora
from .config import TrainConfig
from .data.batches import CachedSample
from .devices import random_kept
from .memory.blocks import replaced_forward
from .memory.live import Live, seconds_of, watched
from .memory.plan import Measured, Visit
from .memory.streaming import Packed, Ring
from .own_loss import LossFunction
from .ports import Loan
from .rng import stream
from .trained import Trained, prepared
from .updater import Updater

_TRIED_COPY = 128 * 2**20
"""Bytes that are copied at most to find out how fast that is."""


@dataclass(frozen=True)
class Alone:
    """A block forward and backward by itself. Bytes above what was there, and seconds."""

    kept: int
    forward_peak: int
    backward_peak: int
    gradients: int
    forward: float
    backward: float


def measure(
    loan: Loan,
    config: TrainConfig,
    samples: Sequence[CachedSample],
    *,
    start: StartingLora | None = None,
    own_loss: LossFunction | None = None,
    check_interrupt: Callable[[], None],
) -> Measured:
    """samples: one batch, of the largest latents and conditions of the run. start: the LoRA to go on from.

    Leaves the random state and the model as they were.
    """
    tried = replace(config, memory=replace(config.memory, checkpointing=1, compile=False))
    denoiser = loan.denoiser
    device = denoiser.device
    with (
        random_kept(device),
        prepared(loan, tried, _no_names, _no_names, start, own_loss) as (trained, objective),
        watched(device) as live,
    ):
        probe = _Probe(denoiser.blocks, live, check_interrupt)

        def loss() -> Tensor:
            return objective.loss(objective.draw(samples, stream(config.seed, "plan"))).sum()

        with probe.alone():
            loss()

        with probe.recording():
            value = loss()
            tail = live.peak
            value.backward()
            probe.mark()
        optimizer, update_peak = _update(trained, config, value.detach(), live, fp16=_fp16(loan))
        outside = _outside_seconds(loss, probe, loan)
        sizes = [_weights(block) for block in denoiser.blocks]
        everything = _weights(denoiser.net) + (_weights(loan.text.net) if loan.text else 0)
        adapters = sum(p.numel() * p.element_size() for group in trained.groups for p in group["params"])
        largest = max(denoiser.blocks, key=_weights, default=None)
        copying, pinned = _copying(max(sizes, default=0), device)
        return Measured(
            visits=tuple(probe.visits),
            blocks=tuple(sizes),
            quantised=tuple(_one_byte(block) for block in denoiser.blocks),
            largest_layer=max((_largest_layer(b) for b in denoiser.blocks), default=0),
            rest=everything - sum(sizes),
            adapters=adapters,
            optimizer=optimizer,
            update_peak=max(update_peak, adapters),
            tail=tail,
            pass_peak=probe.peak,
            outside_seconds=outside,
            copying=copying,
            dequantising=_dequantising(largest, device),
            passes=passes(config),
            cached=0,
            pinned=pinned,
            on_cpu=device.type == "cpu",
        )


def passes(config: TrainConfig) -> float:
    """Forward and backward passes of an optimizer step; one without gradients counts as a third."""
    prior = config.prior
    each = 1.0
    if prior.uses_pictures:
        each += 4 / 3 if prior.method == "class_images_base_target" else 1
    if prior.preserves_output:
        each += 4 / 3
    return each * config.optimizer.accumulation


def _no_names(layers: Any) -> dict[str, Any]:
    return {}


def _fp16(loan: Loan) -> bool:
    return loan.denoiser.half_precision == torch.float16


class _Probe:
    """Stands in front of each block while a pass goes through the network."""

    def __init__(self, blocks: Sequence[nn.Module], live: Live, check_interrupt: Callable[[], None]) -> None:
        self.blocks, self.live, self.check_interrupt = blocks, live, check_interrupt
        self.visits: list[Visit] = []
        self.peak = 0
        """Of the pass that is recorded."""
        self._alone: dict[Any, Alone] = {}

    def mark(self) -> int:
        """Begins a new piece of the pass; returns the peak of the last one."""
        last = self.live.peak
        self.peak = max(self.peak, last)
        self.live.mark()
        return last

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Each kind of block is measured by itself before its first turn."""

        def look(i: int, block: nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> None:
            self.check_interrupt()
            kind = _kind(block, args, kwargs)
            if kind not in self._alone:
                self._alone[kind] = _alone(block, plain, self.live, args, kwargs)

        with self._before_each(look):
            yield

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block a pass leaves its visits."""
        known: set[int] = set()
        before: list[tuple[int, int, int, int, Alone]] = []
        self.live.mark()
        self.peak = 0

        def look(i: int, block: nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> None:
            self.check_interrupt()
            inputs = 0
            for t in _tensors(args, kwargs):
                storage = t.untyped_storage()
                if t.requires_grad and storage._cdata not in known:
                    known.add(storage._cdata)
                    inputs += storage.nbytes()
            alone = self._alone[_kind(block, args, kwargs)]
            before.append((i, self.mark(), self.live.now, inputs, alone))

        with self._before_each(look) as after:
            yield
        self.visits = [
            Visit(
                block=i,
                gap=gap,
                before=now,
                held=held,
                kept=alone.kept,
                forward_peak=alone.forward_peak,
                backward_peak=alone.backward_peak,
                inputs=inputs,
                gradients=alone.gradients,
                forward=alone.forward,
                backward=alone.backward,
            )
            for (i, gap, now, inputs, alone), held in zip(before, after, strict=True)
        ]

    @contextmanager
    def _before_each(self, look: Callable[..., None]) -> Iterator[list[int]]:
        """Yields what each visit added to what is live."""
        added: list[int] = []

        def wrapped(i: int, block: nn.Module) -> Callable[..., Any]:
            forward: Any = block.forward

            def probed(*args: Any, **kwargs: Any) -> Any:
                look(i, block, forward.__wrapped__, args, kwargs)
                now = self.live.now
                out = forward(*args, **kwargs)
                added.append(self.live.now - now)
                self.mark()
                return out

            return probed

        with ExitStack() as stack:
            for i, block in enumerate(self.blocks):
                stack.enter_context(replaced_forward(block, wrapped(i, block)))
            yield added


def _tensors(*values: Any) -> list[Tensor]:
    return [v for v in tree_leaves(values) if isinstance(v, Tensor)]


def _kind(block: nn.Module, args: Any, kwargs: Any) -> Any:
    """Blocks of one kind take the same memory and time."""
    weights = tuple((p.shape, p.requires_grad) for p in block.parameters())
    shapes = tuple((t.shape, t.dtype, t.requires_grad) for t in _tensors(args, kwargs))
    return type(block), weights, shapes


def _alone(block: nn.Module, plain: Callable[..., Any], live: Live, args: Any, kwargs: Any) -> Alone:
    own = [p for p in block.parameters() if p.requires_grad]

    def fresh() -> Any:
        """The inputs as leaves of a graph of their own, which the block may write to."""
        return tree_map_only(Tensor, _copy, (args, kwargs))

    def forward(given: Any) -> list[Tensor]:
        return [t for t in _tensors(plain(*given[0], **given[1])) if t.requires_grad]

    def backward(out: list[Tensor]) -> None:
        if out:
            torch.autograd.backward(out, [torch.ones_like(t) for t in out])

    given = fresh()
    now = live.now
    live.mark()
    out = forward(given)
    kept = live.now - now
    outputs = sum(t.numel() * t.element_size() for t in out)
    forward_peak = live.peak - now
    live.mark()
    backward(out)
    # In a network nothing holds a block's output while the gradients go through it.
    backward_peak = live.peak - now - outputs
    del out
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in own if p.grad is not None)
    given = fresh()
    made: list[list[Tensor]] = []
    device = next((p.device for p in block.parameters()), torch.device("cpu"))
    forward_seconds = seconds_of(lambda: made.append(forward(given)), device)
    backward_seconds = seconds_of(lambda: backward(made.pop()), device)
    for p in own:
        p.grad = None
    return Alone(kept, forward_peak, backward_peak, gradients, forward_seconds, backward_seconds)


def _copy(t: Tensor) -> Tensor:
    return t.detach().requires_grad_().clone() if t.requires_grad else t.clone()


def _update(
    trained: Trained, config: TrainConfig, loss: Tensor, live: Live, *, fp16: bool
) -> tuple[int, int]:
    """One update of the weights: (bytes of the optimizer's state and averages, the most above them)."""
    own = [p for g in trained.groups for p in g["params"]]
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in own if p.grad is not None)
    before = live.now - gradients
    live.mark()
    updater = Updater(trained.groups, config, 1, fp16=fp16)
    updater.step(loss)
    state = live.now - before
    return state, live.peak - before - state


def _outside_seconds(loss: Callable[[], Tensor], probe: _Probe, loan: Loan) -> float:
    """Of a pass, forward and backward: three times what a forward pass takes beside the blocks."""
    with torch.no_grad():
        whole = seconds_of(loss, loan.denoiser.device)
    return 3 * max(0.0, whole - sum(v.forward for v in probe.visits))


def _weights(module: nn.Module) -> int:
    """Bytes of what is frozen in it, each storage once."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    parts = [part for t in (*frozen, *module.buffers()) for part in _parts(t)]
    sizes = {(p.untyped_storage()._cdata, p.storage_offset()): p.numel() * p.element_size() for p in parts}
    return sum(sizes.values())


def _parts(tensor: Tensor) -> list[Tensor]:
    """Itself, or the packed values and scales of a quantised one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _plain_weights(block: nn.Module) -> list[Tensor]:
    """What a base precision changes: matrices and kernels in two bytes or more."""
    return [
        p
        for p in block.parameters()
        if not p.requires_grad
        and p.ndim > 1
        and p.is_floating_point()
        and p.element_size() > 1
        and not hasattr(p, "__tensor_flatten__")
    ]


def _one_byte(block: nn.Module) -> int:
    return _weights(block) - sum(p.numel() * (p.element_size() - 1) for p in _plain_weights(block))


def _largest_layer(block: nn.Module) -> int:
    return max((p.numel() * p.element_size() for p in _plain_weights(block)), default=0)


def _copying(largest: int, device: torch.device) -> tuple[float, int]:
    """Seconds for a byte from host memory through a ring, and what the ring takes of pinned memory."""
    if not largest:
        return 0.0, 0
    block = nn.Module()
    block.bytes = nn.Parameter(torch.ones(min(largest, _TRIED_COPY), dtype=torch.uint8), requires_grad=False)
    packed = Packed(block)
    ring = Ring([packed], device)
    try:
        ring.come(0)
        ring._holds[0] = None
        return seconds_of(lambda: ring.come(0), device) / packed.nbytes, ring.pinned_bytes
    finally:
        ring.close()


def _dequantising(block: nn.Module | None, device: torch.device) -> float:
    """Seconds for a byte of a weight that is brought from one byte to its own precision."""
    plain = _plain_weights(block) if block is not None else []
    if not plain:
        return 0.0
    weight = max(plain, key=torch.Tensor.numel)
    try:
        packed = weight.to(device).to(torch.float8_e4m3fn)
        packed.to(weight.dtype)
    except (RuntimeError, TypeError):  # Apple's devices have no fp8; the plan goes without this figure
        return 0.0
    seconds = seconds_of(lambda: packed.to(weight.dtype), device)
    return seconds / (weight.numel() * weight.element_size())
