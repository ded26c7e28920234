"""Captions by models that look: what is asked, kept and gone on with; real BLIP, LLaVA and ONNX models."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from in_graph_lora.trainer.data.captioners import (
    MAX_SIDE,
    CaptionCache,
    CaptionRequest,
    caption_pictures,
    cleaned,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, DatasetError


class Interrupt(BaseException):
    pass


class Fake:
    """Says the size and the colour of what it sees."""

    def __init__(self, batch: int = 1) -> None:
        self.batch, self.seen, self.seeds, self.starts = batch, [], [], 0

    @contextmanager
    def start(self):
        self.starts += 1
        yield self

    def caption(self, pictures, seed):
        self.seen.append(len(pictures))
        self.seeds.append(seed)
        return [f"{p.size[0]} wide, {p.getpixel((0, 0))[0]} red" for p in pictures]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (20 + i, 10), (i, 0, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def run(folder: Path, fake: Fake, kept: Path, request=None, told=lambda *_: None, identity="fake"):
    request = request or CaptionRequest()
    records = scan_folder(folder).records
    found = caption_pictures(records, fake.start, CaptionCache(kept, identity, request), request, told)
    return {path.name: caption for path, caption in found.items()}


EXPECTED = {f"{i}.png": f"{20 + i} wide, {i} red" for i in range(5)}


@pytest.mark.parametrize(("batch", "seen"), [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
def test_every_picture_gets_its_own_caption_in_batches(folder, kept, batch, seen):
    fake = Fake(batch)
    assert run(folder, fake, kept) == EXPECTED
    assert fake.seen == seen


def test_a_second_run_asks_no_model(folder, kept):
    run(folder, Fake(), kept)
    told = []
    again = Fake()
    assert run(folder, again, kept, told=lambda *a: told.append(a)) == EXPECTED
    assert again.starts == 0
    assert [(done, of, picture) for done, of, _, _, picture in told] == [(i, 5, None) for i in range(1, 6)]


def test_an_interrupt_keeps_what_is_done(folder, kept):
    def stop(done, *_):
        if done == 3:
            raise Interrupt

    with pytest.raises(Interrupt):
        run(folder, Fake(), kept, told=stop)
    again = Fake()
    assert run(folder, again, kept) == EXPECTED
    assert again.seen == [1, 1]


def test_torn_entries_are_written_anew(folder, kept):
    run(folder, Fake(), kept)
    entries = sorted(kept.rglob("*.json"))
    assert len(entries) == 5
    whole = entries[0].read_text()
    for entry, text in zip(
        entries, ["", whole[:20], "[]", '{"caption": 3}', '{"caption": "x", "key": "other"}'], strict=True
    ):
        entry.write_text(text)
    again = Fake()
    assert run(folder, again, kept) == EXPECTED
    assert again.seen == [1] * 5
    assert run(folder, Fake(), kept) == EXPECTED


@pytest.mark.parametrize(
    "change",
    [
        {"request": CaptionRequest(about="tags")},
        {"request": CaptionRequest(prompt="what is it?")},
        {"request": CaptionRequest(max_length=9)},
        {"request": CaptionRequest(seed=1)},
        {"request": CaptionRequest(threshold=0.2)},
        {"identity": "another model"},
    ],
)
def test_all_that_decides_a_caption_decides_what_is_used_again(folder, kept, change):
    run(folder, Fake(), kept)
    again = Fake()
    run(folder, again, kept, **change)
    assert again.seen == [1] * 5


def test_how_many_go_at_a_time_decides_nothing(folder, kept):
    run(folder, Fake(), kept)
    again = Fake()
    run(folder, again, kept, CaptionRequest(batch=4))
    assert again.starts == 0


def test_a_model_that_cannot_be_told_from_another_keeps_nothing(folder, kept):
    run(folder, Fake(), kept, identity="")
    assert not kept.exists()


def test_the_same_picture_under_another_name_and_an_edited_one_are_known_by_content(folder, kept):
    run(folder, Fake(), kept)
    (folder / "1.png").rename(folder / "one.png")
    Image.new("RGB", (99, 10)).save(folder / "2.png")
    again = Fake()
    found = run(folder, again, kept)
    assert again.seen == [1]
    assert (found["one.png"], found["2.png"]) == (EXPECTED["1.png"], "99 wide, 0 red")


def test_pictures_that_cannot_be_read_are_named_when_all_others_are_done(folder, kept):
    records = scan_folder(folder).records
    (folder / "1.png").unlink()
    (folder / "3.png").write_bytes(b"no picture")
    request = CaptionRequest()
    with pytest.raises(
        DatasetError, match=r"1\.png: cannot be read.*3\.png: is no .*all other captions are kept"
    ):
        caption_pictures(
            records, Fake(2).start, CaptionCache(kept, "fake", request), request, lambda *_: None
        )
    assert len(list(kept.rglob("*.json"))) == 3


def test_a_drawn_caption_depends_on_seed_and_picture_and_not_on_its_neighbours(folder, kept):
    drawn = CaptionRequest(temperature=1.0)
    fake = Fake(4)
    run(folder, fake, kept, drawn)
    assert fake.seen == [1] * 5
    assert len(set(fake.seeds)) == 5
    (folder / "0.png").unlink()
    again = Fake(4)
    run(folder, again, kept / "other", drawn)
    assert again.seeds == fake.seeds[1:]
    other = Fake()
    run(folder, other, kept, CaptionRequest(temperature=1.0, seed=1))
    assert not set(other.seeds) & set(fake.seeds)


def test_huge_pictures_are_made_smaller_for_the_model(folder, kept):
    Image.new("RGB", (3 * MAX_SIDE, 30)).save(folder / "0.png")
    assert run(folder, Fake(), kept)["0.png"] == f"{MAX_SIDE} wide, 0 red"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  A cat\n on a  sofa. ", "A cat on a sofa."),
        ("<think>\nwhat is it?\n</think>\n\nA cat", "A cat"),
        ("it may be a cat</think>A cat", "A cat"),
        ("<think> it may be", ""),
        ('"A cat, grey"', "A cat, grey"),
        ("**a cat**", "a cat"),
        ("cat, , sofa,", "cat, sofa"),
        ("a \ud83d cat", "a \ufffd cat"),
    ],
)
def test_what_a_model_writes_becomes_one_line(text, expected):
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    "bad",
    [{"about": "x"}, {"max_length": 0}, {"temperature": float("nan")}, {"batch": 65}, {"threshold": 1.5}],
)
def test_a_setting_out_of_range_is_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        CaptionRequest(**bad)
