from __future__ import annotations

from pathlib import Path

import pytest

from in_graph_lora.trainer.data.captions import apply, existing, render, to_caption, words_of_name
from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.errors import DatasetError


def record(caption="", name="cat_01.png", role="instance"):
    return ImageRecord(path=Path("/data") / name, caption=caption, size=(64, 64), digest="0", role=role)


def dataset(*items):
    return Dataset(records=tuple(item if isinstance(item, ImageRecord) else record(item) for item in items))


def texts(data):
    return [r.caption for r in data.records]


def rendered(template, *, trigger="ohwx", class_word="dog", filename="img 1", caption="on a sofa"):
    return render(template, trigger=trigger, class_word=class_word, filename=filename, caption=caption)


def test_every_placeholder_is_filled():
    assert rendered("{trigger}|{class}|{filename}|{caption}") == "ohwx|dog|img 1|on a sofa"


@pytest.mark.parametrize(
    ("template", "empty", "expected"),
    [
        ("a photo of {trigger} {class}", {"class_word": ""}, "a photo of ohwx"),
        ("a photo of {trigger} {class}", {"trigger": ""}, "a photo of dog"),
        ("{trigger}, {class}, {caption}", {"class_word": ""}, "ohwx, on a sofa"),
        ("{trigger}, {class}, {caption}", {"trigger": "", "class_word": ""}, "on a sofa"),
        ("{trigger} {class}, {caption}", {"class_word": "", "caption": ""}, "ohwx"),
        ("{trigger}，{caption}", {"trigger": ""}, "on a sofa"),
        ("{caption}", {"caption": ""}, ""),
    ],
)
def test_gaps_of_empty_values_are_closed(template, empty, expected):
    assert rendered(template, **empty) == expected


def test_commas_inside_numbers_stay():
    assert rendered("{caption}", caption="1,000 dogs , two cats") == "1,000 dogs, two cats"


@pytest.mark.parametrize(
    "bad", ["{Trigger}", "{}", "{0}", "{trigger.__class__}", "{caption!r}", "{trigger[0]}"]
)
def test_any_other_placeholder_is_refused_by_name(bad):
    with pytest.raises(DatasetError) as e:
        rendered(f"a {bad}")
    assert bad in str(e.value)
    assert "{trigger}, {class}, {filename}, {caption}" in str(e.value)


def test_braces_in_a_value_are_text():
    assert rendered("{trigger}, {caption}", caption="{trigger} {x}") == "ohwx, {trigger} {x}"


def test_a_lone_brace_is_text():
    assert rendered("{trigger} { {class") == "ohwx { {class"
    assert rendered("dog } {") == "dog } {"


def test_keep_gives_captions_only_where_there_is_none():
    done = apply(dataset("a cat", ""), template="a photo of {trigger}", trigger="ohwx", on_existing="keep")
    assert texts(done) == ["a cat", "a photo of ohwx"]


def test_overwrite_can_put_the_trigger_before_each_caption():
    done = apply(
        dataset("a cat", ""), template="{trigger}, {caption}", trigger="ohwx", on_existing="overwrite"
    )
    assert texts(done) == ["ohwx, a cat", "ohwx"]


def test_append_adds_only_what_is_not_said_and_is_idempotent():
    data = dataset("a cat, OHWX", "a cat", "", "一只猫，ohwx")
    options = {
        "template": "{trigger}, {class}",
        "trigger": "ohwx",
        "class_word": "cat",
        "on_existing": "append",
    }
    once = apply(data, **options)
    assert texts(once) == ["a cat, OHWX, cat", "a cat, ohwx, cat", "ohwx, cat", "一只猫，ohwx, cat"]
    assert texts(apply(once, **options)) == texts(once)


def test_append_does_not_repeat_the_caption_through_its_placeholder():
    done = apply(
        dataset("a cat, grey"), template="{trigger}, {caption}", trigger="ohwx", on_existing="append"
    )
    assert texts(done) == ["a cat, grey, ohwx"]


def test_append_does_not_take_a_part_of_a_word_for_the_word():
    done = apply(dataset("caterpillar"), template="{class}", class_word="cat", on_existing="append")
    assert texts(done) == ["caterpillar, cat"]


def test_filename_is_the_name_without_its_suffix():
    done = apply(dataset(record(name="red fox.final.png")), template="{filename}")
    assert texts(done) == ["red fox.final"]


@pytest.mark.parametrize("on_existing", ["keep", "overwrite", "append"])
def test_pictures_of_the_class_never_get_the_trigger(on_existing):
    data = dataset(record(), record(role="class"))
    done = apply(
        data,
        template="a photo of {trigger} {class}",
        trigger="ohwx",
        class_word="dog",
        on_existing=on_existing,
    )
    assert texts(done) == ["a photo of ohwx dog", "a photo of dog"]


@pytest.mark.parametrize("template", ["", "{caption}", "a photo of {trigger} {class}"])
def test_a_caption_that_would_stay_empty_is_an_error_that_names_three_files(template):
    data = dataset(*(record(name=f"{i}.png") for i in range(5)), "kept")
    with pytest.raises(DatasetError) as e:
        apply(data, template=template)
    assert "0.png, 1.png, 2.png and 2 more have no caption" in str(e.value)
    assert "type a trigger or a class word" in str(e.value)


def test_a_template_without_placeholders_is_a_caption():
    assert texts(apply(dataset(""), template="a watercolour")) == ["a watercolour"]


def test_a_misspelt_placeholder_is_found_although_every_caption_is_kept():
    with pytest.raises(DatasetError, match="{triger}"):
        apply(dataset("a cat"), template="{triger}")


def test_an_unknown_mode_is_refused():
    with pytest.raises(DatasetError, match="'replace'"):
        apply(dataset("a"), template="b", on_existing="replace")


def test_apply_changes_nothing_but_captions():
    data = dataset(record("a", "x.png"), record("", "y.png", "class"))
    done = apply(data, template="b")
    assert [(r.path, r.role, r.digest) for r in done.records] == [
        (r.path, r.role, r.digest) for r in data.records
    ]
    assert texts(data) == ["a", ""]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red_fox_012.png", "red fox"),
        ("red fox (12).png", "red fox"),
        ("red-fox-3.jpg", "red-fox"),
        ("r2d2.png", "r2d2"),
        ("0012.png", "0012"),
        ("(3).png", "(3)"),
    ],
)
def test_the_words_of_a_name_are_its_stem_without_a_counter(name, words):
    assert words_of_name(record(name=name)) == words


def test_what_a_source_says_comes_behind_the_template_unless_it_has_a_place():
    data = dataset("old", "")
    options = {"trigger": "ohwx", "class_word": "dog", "on_existing": "overwrite", "source": lambda r: "sits"}
    assert (
        texts(apply(data, template="a photo of {trigger} {class}", **options))
        == ["a photo of ohwx dog, sits"] * 2
    )
    assert texts(apply(data, template="{caption}, {trigger}", **options)) == ["sits, ohwx"] * 2
    options |= {"trigger": "", "class_word": ""}
    assert texts(apply(data, template="a photo of {trigger} {class}", **options)) == ["sits"] * 2


def test_a_source_is_asked_only_for_pictures_that_are_captioned():
    data = dataset("old", record("", "new.png"))
    asked = []

    def source(r):
        asked.append(r.name)
        return "sits"

    done = apply(data, template="", source=source)
    assert (texts(done), asked) == (["old", "sits"], ["new.png"])
    assert [r.name for r in to_caption(data, "keep")] == ["new.png"]
    assert len(to_caption(data, "append")) == 2


def test_existing_captions_get_what_the_template_adds():
    data = dataset("a cat", record("", "b.png"))
    options = {"trigger": "ohwx", "source": existing, "template": "{trigger}"}
    assert texts(apply(data, on_existing="overwrite", **options)) == ["ohwx, a cat", "ohwx"]
    assert texts(apply(data, on_existing="append", **options)) == ["a cat, ohwx", "ohwx"]
    assert texts(apply(data, on_existing="keep", **options)) == ["a cat", "ohwx"]


def test_a_source_that_says_nothing_for_a_picture_is_an_error_that_names_it():
    with pytest.raises(DatasetError, match="cat_01.png has no caption, and the template '' and the method"):
        apply(dataset(""), template="", source=lambda r: " ")
