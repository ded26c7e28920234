from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from in_graph_lora.trainer.data.caption_files import write_captions
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "2_cat").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "2_cat/c.png")):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / name)
    (folder / "a.txt").write_text("by hand\n")
    return folder


def captioned(folder: Path, caption: str = "written"):
    data = scan_folder(folder)
    return data.with_records(r.with_caption(f"{caption} {r.path.stem}") for r in data.records)


def listed(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".png"
    }


def test_a_caption_by_hand_stays_unless_overwriting_is_asked_for(folder):
    done = write_captions(captioned(folder), overwrite=False)
    assert listed(folder) == {"a.txt": "by hand\n", "b.txt": "written b\n", "2_cat/c.txt": "written c\n"}
    assert (done.new, done.kept) == (["b.txt", "c.txt"], ["a.txt"])
    assert "a.txt; choose write_sidecars overwrite" in "\n".join(done.lines)


def test_overwriting_keeps_what_was_there_first_once(folder):
    write_captions(captioned(folder), overwrite=True)
    write_captions(captioned(folder, "again"), overwrite=True)
    assert listed(folder)["a.txt"] == "again a\n"
    assert listed(folder)["a.txt.bak"] == "by hand\n"


def test_what_was_written_is_read_back_and_not_written_again(folder):
    data = captioned(folder)
    write_captions(data, overwrite=True)
    assert scan_folder(folder).records == data.records
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.txt")}
    done = write_captions(data, overwrite=True)
    assert len(done.same) == 3
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.txt")} == before


def test_the_file_that_load_dataset_reads_is_the_one_that_is_written(folder):
    (folder / "b.caption").write_text("by hand too")
    write_captions(captioned(folder), overwrite=True)
    assert listed(folder)["b.caption"] == "written b\n"
    assert "b.txt" not in listed(folder)


def test_nothing_is_written_through_a_link(folder, tmp_path):
    outside = tmp_path / "private.txt"
    outside.write_text("private")
    (folder / "b.txt").symlink_to(outside)
    (folder / "2_cat" / "c.txt").symlink_to(tmp_path / "not there.txt")
    done = write_captions(captioned(folder), overwrite=True)
    assert outside.read_text() == "private"
    assert not (tmp_path / "not there.txt").exists()
    assert sorted(str(p) for p in done.refused) == [
        "b.txt: is a link or no file; replace it by a text file",
        "c.txt: is a link or no file; replace it by a text file",
    ]


def test_bytes_that_are_no_text_are_not_overwritten(folder):
    (folder / "b.txt").write_bytes(b"caf\xe9 ")
    data = captioned(folder)
    done = write_captions(data, overwrite=True)
    assert (folder / "b.txt").read_bytes() == b"caf\xe9 "
    assert "neither UTF-8" in str(done.refused[0])


def test_two_pictures_of_one_stem_do_not_overwrite_each_other(folder):
    Image.new("RGB", (8, 8)).save(folder / "b.webp")
    data = scan_folder(folder)
    data = data.with_records(r.with_caption(r.path.name) for r in data.records)
    done = write_captions(data, overwrite=True)
    assert (folder / "b.txt").read_text() == "b.png\n"
    assert [str(p) for p in done.refused] == [
        "b.webp: reads b.txt, and so does a picture with another caption; rename one of the two"
    ]


def test_pictures_from_the_graph_get_no_files(folder):
    done = write_captions(captioned(folder), overwrite=True, leave=folder)
    assert listed(folder) == {"a.txt": "by hand\n", "2_cat/c.txt": "written c\n"}
    assert len(done.refused) == 2


def test_pictures_without_a_caption_get_no_file(folder):
    write_captions(scan_folder(folder), overwrite=True)
    assert listed(folder) == {"a.txt": "by hand\n"}


def test_a_write_that_fails_leaves_the_old_caption_whole(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_captions(captioned(folder), overwrite=True)
    assert listed(folder) == {"a.txt": "by hand\n"}
