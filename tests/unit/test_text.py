"""Text from outside can be written, sent and tokenized, whichever way it comes in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from in_graph_lora.trainer.config import (
    DataConfig,
    PreviewConfig,
    PriorConfig,
    TrainConfig,
    check_name,
)
from in_graph_lora.trainer.data.captions import apply, render
from in_graph_lora.trainer.data.images import open_image
from in_graph_lora.trainer.data.records import Dataset, ImageRecord, Problem
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.events import Notice
from in_graph_lora.trainer.preflight import remarks
from in_graph_lora.trainer.text import garbled, mentions, readable

LONE = "\ud83d"


def record(caption: str, name: str = "a.png") -> ImageRecord:
    return ImageRecord(path=Path("/data") / name, caption=caption, size=(64, 64), digest="0")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (f"a {LONE} cat", "a � cat"),
        ("\udc00\ud800", "��"),
        ("\udcff.png", "�.png"),
        ("a\0b", "a�b"),
        ("\ud83d\ude00", "😀"),
    ],
)
def test_what_is_no_character_is_replaced_and_halves_of_one_are_joined(given, expected):
    assert readable(given) == expected


@pytest.mark.parametrize("text", ["", "a cat\n, grey", "一只猫", "😀", "�", "\x85\u2028\uffff", "é"])
def test_text_stays_as_it_is(text):
    assert readable(text) == text


def folder_with(tmp_path: Path, name: str, content: str) -> Dataset:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / name).write_text(content, encoding="ascii")
    return scan_folder(tmp_path)


WAYS_IN = {
    "metadata.jsonl": lambda tmp: folder_with(
        tmp, "metadata.jsonl", '{"file_name": "a.png", "text": "a \\ud83d cat"}'
    ),
    "a script": lambda tmp: Dataset(records=(record(f"a {LONE} cat"),)),
    "a changed record": lambda tmp: Dataset(records=(record("").with_caption(f"a {LONE} cat"),)),
    "template": lambda tmp: apply(Dataset(records=(record(""),)), template=f"a {LONE} cat"),
    "trigger": lambda tmp: apply(
        Dataset(records=(record(""),)), template="{trigger} cat", trigger=f"a {LONE}"
    ),
    "class word": lambda tmp: apply(
        Dataset(records=(record(""),)), template="a {class} cat", class_word=LONE
    ),
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_every_caption_of_a_dataset_can_be_encoded_and_the_odd_ones_are_named(way, tmp_path):
    dataset = WAYS_IN[way](tmp_path)
    assert [r.caption for r in dataset.records] == ["a � cat"]
    assert dataset.digest
    told = garbled(dataset.texts)
    assert told.startswith("� replaces what is no character in ")
    assert "caption of a.png" in told


def test_a_file_name_of_undecodable_bytes_can_be_a_caption_and_be_told(tmp_path):
    path = os.fsencode(tmp_path) + b"/cat \xff.png"
    try:
        Image.new("RGB", (8, 8)).save(os.fsdecode(path))
    except OSError:
        pytest.skip("this file system takes no such names")
    dataset = apply(scan_folder(tmp_path), template="{filename}")
    assert [(r.caption, r.name) for r in dataset.records] == [("cat �", "cat �.png")]
    again = apply(dataset, template="{filename}", on_existing="append")
    assert again == dataset, "what is said already is not said again"
    assert open_image(dataset.records[0].path).size == (8, 8)


def test_a_trigger_that_is_written_into_the_file_can_be_encoded():
    assert Dataset(records=(), trigger=f"oh{LONE}wx").trigger == "oh�wx"
    assert "trigger" in garbled(Dataset(records=(), trigger=LONE).texts)


def test_prompts_of_the_settings_can_be_encoded_and_are_named():
    config = TrainConfig(
        prior=PriorConfig(class_prompt=f"a {LONE}"),
        preview=PreviewConfig(prompts=(f"one {LONE}", "two", LONE), negative=f"bad {LONE}"),
        data=DataConfig(),
    )
    assert config.prior.class_prompt == "a �"
    assert config.preview.prompts == ("one �", "two", "�")
    assert config.preview.negative == "bad �"
    (told,) = remarks(config, Dataset(records=(record("a cat"),)))
    assert told.startswith("� replaces what is no character in class_prompt, negative, prompts;")


def test_settings_and_captions_that_are_text_are_not_remarked():
    config = TrainConfig(preview=PreviewConfig(prompts=("一只猫",)))
    assert remarks(config, Dataset(records=(record("a cat 😀"),))) == []


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(ConfigError, match="cannot be a file name"):
        check_name(f"my {LONE} lora")


def test_what_the_user_is_told_can_be_printed():
    message = Notice(message=f"skipped \udcff.png {LONE}").message
    problem = str(Problem(path=Path("\udcff.png"), reason=f"names {LONE}"))
    assert json.loads(json.dumps([message, problem], ensure_ascii=False).encode()) == [
        "skipped �.png �",
        "�.png: names �",
    ]


def test_a_rendered_template_can_be_compared_with_a_caption():
    filled = render(f"{LONE}, {{class}}", trigger="", class_word="\udc00", filename="", caption="")
    assert filled == "�, �"


@pytest.mark.parametrize(
    ("word", "text", "there"),
    [
        ("cat", "a Cat, asleep", True),
        ("cat", "a category", False),
        ("<my-cat>", "(<my-cat>)", True),
        ("<my-cat>", "<my-cats>", False),
        ("caf", "a café", False),
        ("aawxbc", "一张aawxbc的照片", True),
        ("猫", "一只猫坐着", True),
        ("", "a cat, asleep.", False),
    ],
)
def test_a_word_is_found_as_a_whole_in_capitals_or_not(word, text, there):
    assert mentions(word, text) is there
