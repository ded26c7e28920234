"""What a run will hold on the device and on the host, how long its steps take, and which levers make it fit.

Everything is computed from one step that was tried out (`trainer.measure`). With the blocks visited in the
order 1 … n, P_i live before block i with all blocks checkpointed, h_i what it holds then, k_i what it keeps
when it is not checkpointed, f_i and b_i what it takes at most forward and backward by itself, and g_i the
gradients of its adapters, a step needs the largest of all

    P_i + Σ_{j<i, not checkpointed} (k_j − h_j) + max(f_i, b_i + Σ_{j>i} g_j)

f_i also of a checkpointed block, which in the first step is checked. What lies there all the time comes on
top: weights, ring, adapters, optimizer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..config import MemoryConfig
from .streaming import SLOTS, spread

GB = 2**30
CARDS = (8, 12, 16, 24)
"""GB of the cards of the what-if table."""
_SHARES = 20
"""How many different shares of the blocks are looked at, at most."""
_CHECKPOINTING = (0, 3, 2, 1)
_WORTH = 0.9
"""Another base precision is chosen where a step takes less than this part of the time without it."""
_FRAGMENTATION = 0.04
"""Of what the run holds: gaps in the allocator's blocks."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A block's turn in a pass. Bytes, and seconds."""

    block: int
    gap: int
    """The most live between the block before and this one, above what lies there all the time, with all
    blocks checkpointed."""
    before: int
    """Live when it begins."""
    held: int
    """What it adds to that until the backward pass, when it is checkpointed."""
    kept: int
    """The same when it is not."""
    forward_peak: int
    """The most above `before` while it goes forward, when it is not checkpointed."""
    backward_peak: int
    """The most above `before` while it goes backward."""
    inputs: int
    """Of `before`, what is kept for its recomputation alone."""
    gradients: int
    """Of its adapters."""
    forward: float
    backward: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One step of a run, tried out at its largest bucket with every block checkpointed."""

    visits: tuple[Visit, ...]
    blocks: tuple[int, ...]
    """Bytes of each block's weights, as loaded."""
    quantised: tuple[int, ...]
    """Of each block with a base precision of one byte."""
    largest_layer: int
    """Bytes of the largest layer's weight, dequantised."""
    rest: int
    """Bytes of the model outside of the blocks, and of a text encoder that is trained."""
    adapters: int
    optimizer: int
    """Its state, and averaged weights."""
    update_peak: int
    """The most above adapters and optimizer while the weights are updated, gradients included."""
    tail: int
    """The most live after the last block in the forward pass and the loss, as `Visit.gap`."""
    pass_peak: int
    """The most live in the pass."""
    outside_seconds: float
    """Of a pass, forward and backward, outside of the blocks."""
    copying: float
    """Seconds for a byte from host memory to the device."""
    dequantising: float
    """Seconds for a byte of a weight."""
    passes: float
    """Forward and backward passes of an optimizer step."""
    cached: int
    """Bytes of latents and conditions in host memory."""
    pinned: int
    """What a ring takes of pinned host memory."""
    on_cpu: bool
    """Device and host are one memory."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a run needs with certain levers. Bytes."""

    memory: MemoryConfig
    weights: int
    ring: int
    adapters: int
    optimizer: int
    activations: int
    """What a pass or an update takes beside all that, gradients included."""
    host: int
    """What the run itself takes of system memory."""
    seconds: float
    """Of an optimizer step."""

    @property
    def device(self) -> int:
        return self.weights + self.ring + self.adapters + self.optimizer + self.activations

    @property
    def reserve(self) -> int:
        """What the allocator loses in gaps."""
        return int(_FRAGMENTATION * self.device)

    @property
    def with_reserve(self) -> int:
        return self.device + self.reserve


def need(measured: Measured, memory: MemoryConfig) -> Need:
    """With the levers of `memory`, whatever its `fit` says."""
    away = spread(len(measured.blocks), memory.streamed)
    one_byte = memory.base_precision != "as loaded"
    sizes = measured.quantised if one_byte else measured.blocks
    ring = min(SLOTS, len(away)) * max((sizes[i] for i in away), default=0)
    checkpointed = {
        i for i in range(len(sizes)) if (memory.checkpointing and i % memory.checkpointing == 0) or i in away
    }
    weights = sum(sizes) - sum(sizes[i] for i in away)
    if measured.on_cpu:  # what is away lies there too, and what is quantised beside what it is made from
        weights = sum(measured.blocks) + one_byte * sum(sizes)
    offloaded = memory.offload_activations and bool(checkpointed) and not measured.on_cpu
    host = measured.cached + (measured.pinned if away else 0)
    if one_byte:
        host += sum(sizes[i] for i in away)
    if offloaded:
        host += sum(v.inputs for v in measured.visits if v.block in checkpointed)
    dequantised = measured.largest_layer if one_byte else 0
    activations = max(_pass_peak(measured, checkpointed, offloaded) + dequantised, measured.update_peak)
    found = Need(
        memory=memory,
        weights=weights + measured.rest,
        ring=ring,
        adapters=measured.adapters,
        optimizer=measured.optimizer,
        activations=activations,
        host=host,
        seconds=measured.passes * _seconds(measured, memory, away, checkpointed, offloaded),
    )
    return replace(found, host=host + found.device) if measured.on_cpu else found


def _pass_peak(measured: Measured, checkpointed: set[int], offloaded: bool) -> int:
    """The module's formula, set right by the pass that was tried out: it has what lies outside of blocks."""
    every = set(range(len(measured.blocks)))
    _, tried = _peaks(measured, every, False)
    forward, backward = _peaks(measured, checkpointed, offloaded)
    return max(forward, backward + measured.pass_peak - tried)


def _peaks(measured: Measured, checkpointed: set[int], offloaded: bool) -> tuple[int, int]:
    """While blocks go forward, and at all other times."""
    forward, other, more, waiting = 0, 0, 0, 0
    gradients = sum(v.gradients for v in measured.visits)
    for v in measured.visits:
        gradients -= v.gradients
        forward = max(forward, v.before + more + v.forward_peak)
        other = max(other, v.gap + more, v.before + more + v.backward_peak + gradients)
        if v.block not in checkpointed:
            more += v.kept - v.held
        elif offloaded:  # those of the newest block are there still, or again
            more, waiting = more - waiting, v.inputs
    return forward, max(other, measured.tail + more)


def _seconds(
    measured: Measured, memory: MemoryConfig, away: Sequence[int], checkpointed: set[int], offloaded: bool
) -> float:
    """Of a pass. Copies hide behind what is computed meanwhile; the first one has nothing to hide behind."""
    one_byte = memory.base_precision != "as loaded"
    sizes = measured.quantised if one_byte else measured.blocks
    computing = measured.outside_seconds
    for v in measured.visits:
        again = v.block in checkpointed
        computing += v.backward + v.forward * (1 + again)
        if one_byte:
            computing += measured.blocks[v.block] * (2 + again) * measured.dequantising
    moved = 2 * sum(sizes[i] for i in away)
    first = sizes[away[0]] if away else 0
    if offloaded:
        moved += 2 * sum(v.inputs for v in measured.visits if v.block in checkpointed)
    return max(computing + first * measured.copying, moved * measured.copying)


def candidates(measured: Measured, memory: MemoryConfig, precisions: Sequence[str]) -> Iterable[MemoryConfig]:
    """Every combination of levers; precision and compile are those of `memory`."""
    count = len(measured.blocks)
    away = sorted({math.ceil(count * i / _SHARES) for i in range(_SHARES + 1)})
    shares = [math.floor(1e4 * n / count) / 1e4 for n in away] if count else [0.0]
    for base in precisions:
        mine = replace(memory, base_precision=base, offload_activations=False)
        for every, share in itertools.product(_CHECKPOINTING, shares):
            yield replace(mine, checkpointing=every, streamed=share)
        for share in shares:
            yield replace(mine, checkpointing=1, streamed=share, offload_activations=True)


def choose(measured: Measured, memory: MemoryConfig, free: int, precisions: Sequence[str]) -> Need | None:
    """The fastest levers with which the run fits into `free` bytes; None when none does.

    precisions: values of base_precision that may be chosen, "as loaded" first. Others have to be worth it.
    """
    best: Need | None = None
    for base in precisions:
        found = (need(measured, levers) for levers in candidates(measured, memory, [base]))
        fitting = [n for n in found if n.with_reserve <= free]
        if not fitting:
            continue
        fastest = min(fitting, key=_order)
        if best is None or fastest.seconds < _WORTH * best.seconds:
            best = fastest
    return best


def _order(n: Need) -> tuple[float, ...]:
    """The fastest first; between equals what moves less."""
    return (n.seconds, n.memory.offload_activations, n.memory.streamed, n.device)


def leanest(measured: Measured, memory: MemoryConfig, precisions: Sequence[str]) -> Need:
    """The levers that take least of the device."""
    return min((need(measured, c) for c in candidates(measured, memory, precisions)), key=lambda n: n.device)


def leanest_levers(memory: MemoryConfig) -> MemoryConfig:
    """Where nothing is known of the run but that memory is short."""
    return replace(memory, checkpointing=1, streamed=1.0, offload_activations=True)


def leaner(measured: Measured | None, memory: MemoryConfig, *, last: bool) -> MemoryConfig | None:
    """The next levers after these ran out of memory, with the same base precision; None when there are none.

    By the plan: the fastest that need a fifth less, or at last what needs least. Without one: a step down the
    ladder.
    """
    if measured is not None:
        now = need(measured, memory).device
        found = [need(measured, c) for c in candidates(measured, memory, [memory.base_precision])]
        if not last and (smaller := [n for n in found if n.device <= 0.8 * now]):
            return min(smaller, key=_order).memory
        least = min(found, key=lambda n: n.device)
        return least.memory if least.device < now else None
    if last:
        return leanest_levers(memory) if memory != leanest_levers(memory) else None
    ladder: list[Callable[[MemoryConfig], MemoryConfig]] = [
        lambda m: replace(m, checkpointing=1),
        lambda m: replace(m, checkpointing=1, streamed=max(m.streamed, 0.5)),
        lambda m: replace(m, checkpointing=1, streamed=1.0),
        leanest_levers,
    ]
    return next((changed for rung in ladder if (changed := rung(memory)) != memory), None)
