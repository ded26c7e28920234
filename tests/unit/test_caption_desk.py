"""Captions that a page edits: only of pictures that were loaded, by number, and nothing is lost."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from in_graph_lora.trainer.data.caption_desk import KEPT_DATASETS, SIDE, Desk, Desks, Edit
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        Image.new("RGB", (600, 300), (i * 40, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "0.txt").write_text("by hand\n")
    return tmp_path


@pytest.fixture
def desk(folder: Path) -> Desk:
    return desk_of(scan_folder(folder), [folder])


def desk_of(dataset: Dataset, folders: list[Path]) -> Desk:
    desks = Desks()
    return desks.find(desks.load(dataset, folders))


def test_an_edit_is_written_and_what_was_written_by_hand_is_kept_once(desk, folder):
    assert desk.pictures()[0] == {"name": "0.png", "caption": "by hand"}
    done = desk.save(
        [Edit(number=0, was="by hand", caption=" first\r\nline "), Edit(number=1, was="", caption="new")]
    )
    assert done == {"saved": [0, 1], "refused": []}
    desk.save([Edit(number=0, was="first\nline", caption="second")])
    assert (folder / "0.txt").read_text() == "second\n"
    assert (folder / "0.txt.bak").read_text() == "by hand\n"
    assert (folder / "1.txt").read_text() == "new\n"
    assert [p["caption"] for p in desk.pictures()] == ["second", "new", ""]


def test_a_caption_can_be_emptied(desk, folder):
    assert desk.save([Edit(number=0, was="by hand", caption="")])["saved"] == [0]
    assert scan_folder(folder).records[0].caption == ""


def test_what_another_program_wrote_meanwhile_is_not_overwritten(desk, folder):
    (folder / "0.txt").write_text("another")
    done = desk.save([Edit(number=0, was="by hand", caption="mine"), Edit(number=2, was="", caption="saved")])
    assert done["saved"] == [2]
    assert "run the graph again" in done["refused"][0]["error"]
    assert (folder / "0.txt").read_text() == "another"
    assert "refused" in desk.pictures()[0]

    done = desk.save([Edit(number=2, was="", caption="from a second window")])
    assert "was edited elsewhere" in done["refused"][0]["error"]
    assert (folder / "2.txt").read_text() == "saved\n"


def test_captions_that_a_node_has_changed_are_edited_as_it_left_them(folder):
    desks, dataset = Desks(), scan_folder(folder)
    changed = dataset.with_records(r.with_caption(f"ohwx, {r.caption}") for r in dataset.records)
    assert all("refused" in p for p in desks.find(desks.add(changed)).pictures()), "nobody has loaded it"
    desks.load(dataset, [folder])
    desk = desks.find(desks.add(changed))
    assert desk.pictures()[:2] == [
        {"name": "0.png", "caption": "ohwx, by hand"},
        {"name": "1.png", "caption": "ohwx, "},
    ]
    edits = [Edit(number=0, was="ohwx, by hand", caption="mine"), Edit(number=1, was="", caption="wrong was")]
    assert desk.save(edits)["saved"] == [0]
    assert (folder / "0.txt").read_text() == "mine\n"
    assert (folder / "0.txt.bak").read_text() == "by hand\n"
    assert not (folder / "1.txt").exists(), "what was not edited is not written"
    assert desk.pictures()[0]["caption"] == "mine"

    (folder / "0.txt").write_text("another")
    done = desk.save([Edit(number=0, was="mine", caption="again")])
    assert "run the graph again" in done["refused"][0]["error"]
    assert (folder / "0.txt").read_text() == "another"


def test_a_link_is_never_written_through(desk, folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    target.write_text("by hand")
    (folder / "0.txt").unlink()
    (folder / "0.txt").symlink_to(target)
    done = desk.save([Edit(number=0, was="by hand", caption="mine")])
    assert "is a link" in done["refused"][0]["error"]
    assert target.read_text() == "by hand"


def test_pictures_that_come_from_no_folder_are_refused_with_a_sentence(folder):
    desk = desk_of(scan_folder(folder), [])
    assert all("does not come from a plain folder" in picture["refused"] for picture in desk.pictures())
    assert desk.save([Edit(number=0, was="by hand", caption="mine")])["saved"] == []
    assert (folder / "0.txt").read_text() == "by hand\n"


def test_thumbnails_are_small_and_kept(folder):
    desks = Desks()
    name = desks.load(scan_folder(folder), [folder])
    made = desks.thumbnail(name, 1)
    assert Image.open(io.BytesIO(made)).size == (SIDE, SIDE // 2)
    (folder / "1.png").unlink()
    assert desks.thumbnail(name, 1) is made


def test_an_unknown_dataset_or_picture_is_refused_and_old_datasets_go(folder):
    desks, dataset = Desks(), scan_folder(folder)
    first = desks.load(dataset, [folder])
    with pytest.raises(StorageError):
        desks.find("../" + first)
    for number in (-1, 3):
        with pytest.raises(StorageError):
            desks.thumbnail(first, number)
    for _ in range(KEPT_DATASETS):
        desks.load(dataset, [folder])
    with pytest.raises(StorageError, match="run the graph again"):
        desks.find(first)
