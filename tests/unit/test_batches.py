from __future__ import annotations

from collections import Counter, defaultdict
from itertools import islice

import pytest
import torch

from in_graph_lora.trainer.data.batches import (
    CachedSample,
    batches,
    epoch_batches,
    micro_batches,
    same_shape_groups,
    shares,
)


def _samples(*widths: int, repeats: int = 1) -> list[CachedSample]:
    return [
        CachedSample(latent=torch.zeros(4, 8, w), conditioning=i, key=str(i), repeats=repeats)
        for i, w in enumerate(widths)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_an_epoch_has_ceil_n_over_b_batches_of_which_one_may_be_short(size):
    samples = _samples(8, 8, 8, 16, 16, 24, 8)
    epoch = epoch_batches(samples, size, seed=1, epoch=0)
    assert len(epoch) == -(-7 // size)
    assert sorted(len(batch) for batch in epoch)[1:] == [size] * (len(epoch) - 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_an_epoch_shows_every_sample_as_often_as_it_is_repeated(size):
    samples = [
        CachedSample(latent=torch.zeros(4, 8, 8 * (1 + i % 3)), conditioning=i, key=str(i), repeats=1 + i % 4)
        for i in range(9)
    ]
    for epoch in range(3):
        shown = Counter(s.key for batch in epoch_batches(samples, size, 1, epoch) for s in batch)
        assert shown == {s.key: s.repeats for s in samples}


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_over_an_epoch_every_show_weighs_the_same(size):
    samples = _samples(8, 8, 8, 16, 16, 24, 8)
    weights = defaultdict(float)
    for batch in islice(micro_batches(samples, samples[:3], size, seed=1), -(-7 // size)):
        for sample in batch.samples:
            weights[sample.key] += batch.share / len(batch.samples)
    assert weights == {s.key: pytest.approx(1 / size) for s in samples}


def test_repeats_show_a_sample_more_often():
    epoch = epoch_batches(_samples(8, 8, repeats=5), 2, seed=0, epoch=0)
    assert Counter(s.key for b in epoch for s in b) == {"0": 5, "1": 5}


def test_full_batches_come_from_one_bucket():
    epoch = epoch_batches(_samples(*[8] * 8, *[16] * 8), 4, seed=3, epoch=0)
    assert all(len(same_shape_groups(batch)) == 1 for batch in epoch)


def test_order_changes_with_epoch_and_seed_and_with_nothing_else():
    samples = _samples(*[8] * 12)

    def keys(seed: int, epoch: int) -> list[str]:
        return [s.key for b in epoch_batches(samples, 2, seed, epoch) for s in b]

    assert keys(0, 0) == keys(0, 0)
    assert keys(0, 0) != keys(0, 1)
    assert keys(0, 0) != keys(1, 0)


@pytest.mark.parametrize("start", [1, 4, 5, 11])
def test_starting_later_continues_the_same_sequence(start):
    samples = _samples(8, 8, 8, 16, 16, 24, 8)
    straight = [[s.key for s in b] for b in islice(batches(samples, 2, seed=7), start + 6)]
    resumed = [[s.key for s in b] for b in islice(batches(samples, 2, seed=7, start=start), 6)]
    assert resumed == straight[start:]


def test_the_class_has_an_order_of_its_own_and_not_that_of_another_seed():
    many = _samples(*[8] * 12)
    paired = list(islice(micro_batches(many, many, 1, seed=3), 12))
    classes = [b.class_samples[0].key for b in paired]
    assert sorted(classes) == sorted(s.key for s in many)
    for seed in range(20):
        pictures = [b[0].key for b in islice(batches(many, 1, seed), 12)]
        assert classes != pictures


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_processes_share_each_step_without_overlap_in_the_order_of_one(size, accumulation):
    samples = _samples(8, 8, 8, 16, 16, 24, 8)
    of_class = _samples(8, 16, 8)

    def order():
        return micro_batches(samples, of_class, 3, seed=1)

    steps = 6 * accumulation
    straight = [batch.load() for batch in islice(order(), steps)]
    parts = [
        [batch.load() for batch in islice(shares(order(), accumulation, rank, size), steps)]
        for rank in range(size)
    ]
    counts = [[0] * size for _ in range(6)]
    for n, whole in enumerate(straight):
        for which in ("samples", "class_samples"):
            own = [getattr(part[n], which) for part in parts]
            for i, sample in enumerate(getattr(whole, which)):
                here = [rank for rank in range(size) if own[rank][i] is sample]
                assert len(here) == 1, "each is trained once"
                assert all(others[i].bucket == sample.bucket for others in own)
                counts[n // accumulation][here[0]] += which == "samples"
        assert {(p[n].share, p[n].class_share) for p in parts} == {(whole.share, whole.class_share)}
    assert all(max(step) - min(step) <= 1 for step in counts)
