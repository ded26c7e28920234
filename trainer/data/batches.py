"""The order in which samples are shown.

An epoch shows each sample `repeats` times. Batches are filled from one bucket where possible; what is left
over in the buckets shares mixed batches, so every sample weighs the same and an epoch has ceil(N / B) steps.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ports import Conditioning, Controls
from ..rng import stream


@dataclass(frozen=True, kw_only=True)
class CachedSample:
    """What training needs of one picture, computed once."""

    latent: Tensor
    """[C, ...] fp32, as the model sees it."""
    conditioning: Conditioning
    """Of the caption. None while the text encoder trains: then the caption is encoded in each step."""
    key: str
    caption: str = ""
    repeats: int = 1
    weight: float = 1.0
    """Factor on this picture's loss."""
    mask: Tensor | None = None
    """[1, ...] of the latent's spatial shape, 0..1: where the loss counts."""
    empty: Conditioning = None
    """Condition of the empty caption, when captions are dropped."""
    class_conditioning: Conditioning = None
    """Condition of the class prompt, for output preservation."""
    references: Controls = None
    """Of the picture, while the text encoder trains; otherwise the conditions have them in them."""

    @property
    def bucket(self) -> tuple[int, ...]:
        return tuple(self.latent.shape)


@dataclass(frozen=True)
class MicroBatch:
    """What one backward pass learns from."""

    samples: Sequence[CachedSample]
    class_samples: Sequence[CachedSample] = ()


def epoch_batches(
    samples: Sequence[CachedSample], batch_size: int, seed: int, epoch: int, purpose: str = "order"
) -> list[list[CachedSample]]:
    """The batches of one epoch. Depends on nothing but the arguments. A last short batch is topped up."""
    g = stream(seed, purpose, epoch)

    def shuffled(items: list) -> list:
        return [items[i] for i in torch.randperm(len(items), generator=g).tolist()]

    buckets: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in shuffled([i for i, s in enumerate(samples) for _ in range(s.repeats)]):
        buckets[samples[i].bucket].append(i)

    full, rest = [], []
    for members in buckets.values():
        cut = len(members) - len(members) % batch_size
        full += [members[i : i + batch_size] for i in range(0, cut, batch_size)]
        rest += members[cut:]
    full += [rest[i : i + batch_size] for i in range(0, len(rest), batch_size)]
    if len(full[-1]) < batch_size:
        spare = shuffled([i for i in range(len(samples)) if i not in full[-1]]) or full[-1]
        missing = batch_size - len(full[-1])
        full[-1] = full[-1] + (spare * (missing // len(spare) + 1))[:missing]
    return [[samples[i] for i in batch] for batch in shuffled(full)]


def batches(
    samples: Sequence[CachedSample], batch_size: int, seed: int, start: int = 0, purpose: str = "order"
) -> Iterator[list[CachedSample]]:
    """Batches for ever, beginning with the batch of step `start`."""
    per_epoch = -(-sum(s.repeats for s in samples) // batch_size)
    epoch, skip = divmod(start, per_epoch)
    while True:
        yield from epoch_batches(samples, batch_size, seed, epoch, purpose)[skip:]
        epoch, skip = epoch + 1, 0


def micro_batches(
    samples: Sequence[CachedSample],
    class_samples: Sequence[CachedSample],
    batch_size: int,
    seed: int,
    start: int = 0,
) -> Iterator[MicroBatch]:
    """Batches for ever, each with one of the class where there are class samples."""
    shown = batches(samples, batch_size, seed, start)
    kept: Iterator[list[CachedSample]] = itertools.repeat([])
    if class_samples:
        kept = batches(class_samples, min(batch_size, len(class_samples)), seed, start, "class order")
    return map(MicroBatch, shown, kept)


def same_shape_groups(batch: Sequence[CachedSample]) -> list[list[CachedSample]]:
    """The batch, split into parts that can go through the network together."""
    groups: defaultdict[tuple[int, ...], list[CachedSample]] = defaultdict(list)
    for sample in batch:
        groups[sample.bucket].append(sample)
    return list(groups.values())
