from __future__ import annotations

import time

import pytest

from in_graph_lora.trainer.data.caption_edits import MAX_CHARACTERS, Edits, edited
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.errors import ConfigError, DatasetError

from .test_captions import dataset, record, texts


def after(*captions: str, trigger: str = "", **edits) -> list[str]:
    data = dataset(*(record(c, f"{i}.png") for i, c in enumerate(captions)))
    return texts(edited(Dataset(records=data.records, trigger=trigger), Edits(**edits)))


def test_without_edits_every_caption_stays_as_it_is_to_the_letter():
    captions = ["a  cat , grey,,", "", "{trigger} (x:1.2)"]
    assert after(*captions) == captions


@pytest.mark.parametrize(
    ("lines", "regex", "expected"),
    [
        ("grey => black", False, "a black cat, Grey eyes"),
        ("a grey => the\ncat => dog", False, "the dog, Grey eyes"),
        (", Grey eyes =>", False, "a grey cat"),
        ("a . cat =>", False, "a grey cat, Grey eyes"),
        (r"(?i)\bgrey\b => black", True, "a black cat, black eyes"),
        (r"(\w+) cat => \1 dog", True, "a grey dog, Grey eyes"),
        (r"cat|eyes =>", True, "a grey, Grey"),
    ],
)
def test_lines_replace_in_order(lines, regex, expected):
    assert after("a grey cat, Grey eyes", replacements=lines, regex=regex) == [expected]


@pytest.mark.parametrize("line", ["grey", "=> black", "a\ngrey -> black"])
def test_a_line_without_an_arrow_or_a_text_to_find_is_named(line):
    with pytest.raises(ConfigError, match="write find => replacement"):
        after("a", replacements=line)


@pytest.mark.parametrize(("line", "said"), [("( => x", "is not a regular"), (r"(a) => \2", "cannot replace")])
def test_a_wrong_expression_is_named(line, said):
    with pytest.raises(ConfigError, match=said):
        after("a", replacements=line, regex=True)


def test_an_expression_that_backtracks_for_ever_is_given_up(monkeypatch):
    monkeypatch.setattr("in_graph_lora.trainer.data.caption_edits.MAX_SECONDS", 0.2)
    started = time.perf_counter()
    with pytest.raises(ConfigError, match=r"more than 0\.2 s"):
        after("a photo of a grey cat on a sofa" * 3, replacements=r"^(.*?.*?)*[0-9]$ => x", regex=True)
    assert time.perf_counter() - started < 20


def test_replacements_that_multiply_are_stopped():
    with pytest.raises(DatasetError, match=f"beyond {MAX_CHARACTERS}"):
        after("a" * 100, replacements="\n".join(["a => " + "a" * 50] * 9))


def test_the_class_word_becomes_the_trigger_only_where_it_is_a_word():
    captions = ["A Dog and a dogma, dog.", "a bulldog"]
    assert after(*captions, class_word="dog", trigger="ohwx") == ["A ohwx and a dogma, ohwx.", "a bulldog"]
    assert after(*captions, class_word="dog", trigger=r"\1") == [r"A \1 and a dogma, \1.", "a bulldog"]


def test_a_class_word_without_a_trigger_is_refused():
    with pytest.raises(ConfigError, match="no trigger"):
        after("a dog", class_word="dog")


def test_the_trigger_of_caption_images_is_used_unless_another_is_typed():
    assert after("a dog", class_word="dog", trigger="sks") == ["a sks"]
    data = Dataset(records=dataset("a dog").records, trigger="ohwx")
    assert texts(edited(data, Edits(class_word="dog"))) == ["a ohwx"]
    assert edited(data, Edits(trigger="sks", prefix="{trigger}")).trigger == "sks"


def test_tags_that_fewer_pictures_have_are_dropped_and_the_trigger_stays():
    captions = ["ohwx, Cat, sofa, cat", "cat, lamp", "cat， SOFA"]
    assert after(*captions, min_count=2, trigger="ohwx") == ["ohwx, Cat, sofa, cat", "cat", "cat， SOFA"]


def test_a_picture_that_is_there_twice_counts_once():
    data = dataset(record("cat, lamp", "a.png"), record("cat, lamp", "a.png"), record("cat", "b.png"))
    assert texts(edited(data, Edits(min_count=2))) == ["cat", "cat", "cat"]


def test_prefix_and_suffix_are_put_around_once():
    edits = {"prefix": "{trigger},", "suffix": ", photo of a {class}", "trigger": "ohwx"}
    once = after("grey, sitting", "", **edits)
    assert once == ["ohwx, grey, sitting, photo of a", "ohwx, photo of a"]
    assert after(*once, **edits) == once


def test_a_prefix_may_be_the_beginning_of_a_sentence():
    assert after("a grey cat", prefix="a photo of") == ["a photo of a grey cat"]


def test_a_prefix_with_another_placeholder_is_named():
    with pytest.raises(DatasetError, match=r"prefix: \{caption\} is not a placeholder; use \{trigger\}"):
        after("a", prefix="{caption}")


def test_pictures_of_the_class_never_get_the_trigger():
    data = dataset(record("a dog, pet", "a.png"), record("a dog, pet", "b.png", role="class"))
    edits = Edits(
        prefix="OHWX, photo of {trigger},",
        suffix=", ohwx",
        class_word="dog",
        trigger="ohwx",
        replacements="pet => ohwx pet",
    )
    assert texts(edited(data, edits)) == [
        "OHWX, photo of ohwx, a ohwx, ohwx pet, ohwx",
        "photo of, a dog, pet",
    ]
    expressions = Edits(trigger="ohwx", replacements=r"(pet) => ohwx \1", regex=True)
    assert texts(edited(data, expressions)) == ["a dog, ohwx pet", "a dog, pet"]


def test_nothing_but_captions_is_changed():
    data = dataset(record("a", "x.png"), record("", "y.png", "class"))
    done = edited(data, Edits(prefix="b"))
    assert [(r.path, r.role, r.digest) for r in done.records] == [
        (r.path, r.role, r.digest) for r in data.records
    ]
