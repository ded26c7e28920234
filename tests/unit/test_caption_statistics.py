from __future__ import annotations

from in_graph_lora.trainer.data.caption_statistics import caption_statistics

from .test_captions import dataset, record


def test_tags_are_counted_once_a_picture_whatever_their_case():
    found = caption_statistics(dataset("Cat, sofa, cat", "cat，lamp", "sofa, cat"))
    assert found.tags == (("Cat", 3), ("sofa", 2), ("lamp", 1))


def test_lengths_are_in_the_callers_unit_and_empty_captions_are_counted():
    data = dataset(record("a cat", "a.png"), record("", "b.png"), record("a grey cat sits", "c.png"))
    found = caption_statistics(data)
    assert found.without == 1
    assert found.lengths == (("c.png", 4), ("a.png", 2))
    assert found.longest == ("c.png", 4)
    assert found.mean_length == 3.0
    assert found.over(3) == ("c.png",)
    assert caption_statistics(data, len).longest == ("c.png", 15)


def test_a_dataset_without_captions_has_figures_too():
    found = caption_statistics(dataset("", ""))
    assert (found.tags, found.without, found.longest, found.mean_length) == ((), 2, ("", 0), 0.0)
