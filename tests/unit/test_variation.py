from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from in_graph_lora.trainer.config import ObjectiveConfig
from in_graph_lora.trainer.data.batches import CachedSample, Showing, micro_batches
from in_graph_lora.trainer.data.stored import StoredSample
from in_graph_lora.trainer.data.variation import Captions, Variation
from in_graph_lora.trainer.data.views import View
from in_graph_lora.trainer.rng import stream

TAGS = "aawxbc, figurine, red, on a table, photo"


VIEW = View(size=(64, 64), box=(0, 0, 64, 64))


def _captions(
    *written: str, count: int = 8, live: bool = False, seed: int = 0, key: str = "k", **variation: object
) -> Captions:
    return Captions.of(
        written,
        key,
        Variation(**variation),
        count=count,
        seed=seed,
        live=live,  # type: ignore[arg-type]
    )


def _drawn(captions: Captions, times: int, key: str = "k") -> list[str]:
    return [captions.drawn(key, Showing(0, i, 0))[1] for i in range(times)]


def test_a_caption_that_does_not_vary_is_left_as_it_is() -> None:
    odd = "a photo , with\n odd,spaces ,"
    for live in (True, False):
        captions = _captions(odd, live=live, keep=1)
        assert captions.encoded == (odd,)
        assert set(_drawn(captions, 5)) == {odd}


def test_the_first_tags_stay_where_they_are_and_the_others_change_places() -> None:
    texts = _drawn(_captions(TAGS, live=True, shuffle=True, keep=2), 200)
    assert {text.split(", ")[0] for text in texts} == {"aawxbc"}
    assert {text.split(", ")[1] for text in texts} == {"figurine"}
    assert all(sorted(text.split(", ")) == sorted(TAGS.split(", ")) for text in texts)
    orders = Counter(text.split(", ", 2)[2] for text in texts)
    assert len(orders) == 6  # 3! of the other three
    assert min(orders.values()) > 15


def test_tags_are_dropped_as_often_as_was_asked_and_kept_ones_never() -> None:
    texts = _drawn(_captions(TAGS, live=True, dropout=0.3, keep=1), 2000)
    counts = Counter(tag for text in texts for tag in text.split(", "))
    assert counts["aawxbc"] == 2000
    for tag in TAGS.split(", ")[1:]:
        assert counts[tag] == pytest.approx(1400, abs=90)


def test_one_tag_always_stays() -> None:
    assert all(_drawn(_captions(TAGS, live=True, dropout=1.0, keep=0, shuffle=True), 50))


def test_several_captions_are_drawn_equally_often() -> None:
    captions = _captions("one", "two", "three")
    assert captions.encoded == ("one", "two", "three")
    counts = Counter(_drawn(captions, 1500))
    assert all(counts[text] == pytest.approx(500, abs=80) for text in ("one", "two", "three"))


def test_a_frozen_text_encoder_sees_a_bounded_number_of_texts() -> None:
    many = _captions(*map(str, range(20)), count=5)
    assert len(many.encoded) == len(set(many.encoded)) == 5
    shuffled = _captions(TAGS, shuffle=True, keep=1, count=5)
    assert len(shuffled.encoded) == 5
    assert set(_drawn(shuffled, 300)) == set(shuffled.encoded)
    assert _captions(TAGS, shuffle=True, count=1).encoded == _captions(TAGS, shuffle=True, count=1).encoded


def test_every_caption_is_among_the_texts_where_there_is_room() -> None:
    texts = _captions("a, b", "c, d", "e, f", shuffle=True, count=7).encoded
    assert {frozenset(text.split(", ")) for text in texts} == {
        frozenset("ab"),
        frozenset("cd"),
        frozenset("ef"),
    }


def test_the_texts_depend_on_seed_and_picture() -> None:
    long = ", ".join(map(str, range(12)))

    def texts(seed: int, key: str) -> tuple[str, ...]:
        return _captions(long, seed=seed, key=key, shuffle=True).encoded

    assert texts(0, "a") == texts(0, "a")
    assert texts(0, "a") != texts(1, "a")
    assert texts(0, "a") != texts(0, "b")


def test_settings_come_from_the_objective() -> None:
    config = ObjectiveConfig(tag_shuffle=True, keep_tags=3, tag_dropout=0.2)
    assert Variation.of(config) == Variation(True, 3, 0.2)
    assert not Variation.of(ObjectiveConfig()).changes


def _stored(i: int, live: bool) -> StoredSample:
    def read(sample: StoredSample, which: int, caption: str) -> CachedSample:
        return CachedSample(latent=torch.zeros(4, 8, 8), conditioning=which, key=sample.key, caption=caption)

    captions = _captions(TAGS, f"the picture {i}", live=live, shuffle=True, keep=1, key=str(i))
    return StoredSample(
        key=str(i),
        bucket=(4, 8, 8),
        captions=captions,
        repeats=2,
        weight=1.0,
        view=VIEW,
        latent="",
        read=read,
    )


@pytest.mark.parametrize("live", [False, True])
def test_resumed_at_any_batch_the_captions_are_those_of_the_straight_run(live: bool) -> None:
    samples = [_stored(i, live) for i in range(5)]

    def told(start: int, count: int) -> list[list[str]]:
        order = micro_batches(samples, samples[:2], 2, seed=4, start=start)
        loaded = (batch.load() for batch in islice(order, count))
        return [[s.caption for s in (*b.samples, *b.class_samples)] for b in loaded]

    straight = told(0, 20)
    assert len({text for batch in straight for text in batch}) > 8
    for start in (1, 5, 13):
        assert told(start, 20 - start) == straight[start:]


def test_a_sample_that_is_twice_in_a_batch_gets_two_draws() -> None:
    captions = _captions(", ".join(map(str, range(12))), live=True, shuffle=True)
    assert captions.drawn("k", Showing(0, 3, 0)) != captions.drawn("k", Showing(0, 3, 1))


def test_draws_of_a_variation_come_from_the_generator_alone() -> None:
    variation = Variation(True, 1, 0.5)
    texts = [variation.applied(TAGS, stream(1, "x", step)) for step in (0, 0, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 2
