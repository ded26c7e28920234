"""The order in which samples are shown.

An epoch shows each sample exactly `repeats` times. Batches are filled from one bucket where possible; what is
left over in the buckets shares mixed batches, of which the last one may be short. So an epoch that shows N
has ceil(N / B) batches, nothing is left out or added, and by `MicroBatch.share` all weigh the same.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..ports import Conditioning, Controls
from ..rng import stream
from .views import View


@dataclass(frozen=True, slots=True)
class Showing:
    """One time that a sample is shown; its draws depend on nothing else."""

    seed: int
    batch: int
    """Since the start of the run."""
    place: int
    """In the batch, where a repeated sample may be twice."""

    def draws(self, purpose: str, key: str) -> torch.Generator:
        return stream(self.seed, f"{purpose} of {key} at {self.place}", self.batch)


class Sample(Protocol):
    """What is known of a sample before it is loaded."""

    @property
    def key(self) -> str: ...
    @property
    def bucket(self) -> tuple[int, ...]: ...
    @property
    def caption(self) -> str: ...
    @property
    def repeats(self) -> int: ...

    def load(self, showing: Showing | None = None) -> CachedSample:
        """showing: decides which of its captions it has; None is the first one, as it was written."""
        ...


S = TypeVar("S", bound=Sample)


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
    view: View | None = None
    """What of the picture is shown."""
    empty: Conditioning = None
    """Condition of the empty caption, when captions are dropped."""
    class_conditioning: Conditioning = None
    """Condition of the class prompt, for output preservation."""
    references: Controls = None
    """Of the picture, while the text encoder trains; otherwise the conditions have them in them."""

    @property
    def bucket(self) -> tuple[int, ...]:
        return tuple(self.latent.shape)

    def load(self, showing: Showing | None = None) -> CachedSample:
        return self


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A sample that another process trains; its draws are made here too, so that they are the same in all."""

    bucket: tuple[int, ...]


@dataclass(frozen=True)
class MicroBatch:
    """What one backward pass learns from."""

    samples: Sequence[CachedSample | Elsewhere]
    class_samples: Sequence[CachedSample | Elsewhere] = ()
    share: float = 1.0
    """Samples in it, by those in a full batch: what its mean weighs."""
    class_share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class BatchToLoad:
    """A `MicroBatch` whose samples are not in memory yet."""

    samples: Sequence[Sample]
    class_samples: Sequence[Sample]
    share: float
    class_share: float
    seed: int
    number: int
    """Since the start of the run."""
    own: Container[int] | None = None
    """Places of the samples that this process trains; None is all. Class samples come behind the others."""

    def load(self) -> MicroBatch:
        return MicroBatch(
            self._loaded(self.samples, 0),
            self._loaded(self.class_samples, len(self.samples)),
            self.share,
            self.class_share,
        )

    def _loaded(self, samples: Sequence[Sample], first: int) -> list[CachedSample | Elsewhere]:
        return [
            s.load(Showing(self.seed, self.number, i))
            if self.own is None or i in self.own
            else Elsewhere(s.bucket)
            for i, s in enumerate(samples, first)
        ]


def epoch_batches(
    samples: Sequence[S], batch_size: int, seed: int, epoch: int, purpose: str = "order"
) -> list[list[S]]:
    """The batches of one epoch. Depends on nothing but the arguments."""
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
    return [[samples[i] for i in batch] for batch in shuffled(full)]


def batches(
    samples: Sequence[S], batch_size: int, seed: int, start: int = 0, purpose: str = "order"
) -> Iterator[list[S]]:
    """Batches for ever, beginning with the batch of step `start`."""
    per_epoch = -(-sum(s.repeats for s in samples) // batch_size)
    epoch, skip = divmod(start, per_epoch)
    while True:
        yield from epoch_batches(samples, batch_size, seed, epoch, purpose)[skip:]
        epoch, skip = epoch + 1, 0


def micro_batches(
    samples: Sequence[Sample],
    class_samples: Sequence[Sample],
    batch_size: int,
    seed: int,
    start: int = 0,
) -> Iterator[BatchToLoad]:
    """Batches for ever, each with one of the class where there are class samples."""
    shown = batches(samples, batch_size, seed, start)
    class_size = min(batch_size, len(class_samples))
    kept: Iterator[list[Sample]] = itertools.repeat([])
    if class_samples:
        kept = batches(class_samples, class_size, seed, start, "class order")
    for number, batch, of_class in zip(itertools.count(start), shown, kept, strict=False):
        yield BatchToLoad(
            samples=batch,
            class_samples=of_class,
            share=len(batch) / batch_size,
            class_share=len(of_class) / max(1, class_size),
            seed=seed,
            number=number,
        )


def shares(order: Iterator[BatchToLoad], accumulation: int, rank: int, size: int) -> Iterator[BatchToLoad]:
    """The same batches, of which each of `size` processes loads its part: of a step's samples, and of its
    class samples, as many as any other, give or take one. Those of one shape stay together."""
    while step := list(itertools.islice(order, accumulation)):
        own: list[set[int]] = [set() for _ in step]
        for which in (_places(step, of_class=False), _places(step, of_class=True)):
            for number, place in which[rank * len(which) // size : (rank + 1) * len(which) // size]:
                own[number].add(place)
        yield from (replace(batch, own=mine) for batch, mine in zip(step, own, strict=True))


def _places(step: Sequence[BatchToLoad], *, of_class: bool) -> list[tuple[int, int]]:
    """(batch, place in it) of a step's samples."""
    out = []
    for number, batch in enumerate(step):
        samples = batch.class_samples if of_class else batch.samples
        first = len(batch.samples) if of_class else 0
        buckets = list(dict.fromkeys(s.bucket for s in samples))
        places = sorted(range(len(samples)), key=lambda i: buckets.index(samples[i].bucket))
        out += [(number, first + i) for i in places]
    return out


G = TypeVar("G", CachedSample, CachedSample | Elsewhere)


def same_shape_groups(batch: Sequence[G]) -> list[list[G]]:
    """The batch, split into parts that can go through the network together."""
    groups: defaultdict[tuple[int, ...], list[G]] = defaultdict(list)
    for sample in batch:
        groups[sample.bucket].append(sample)
    return list(groups.values())
