"""The folders that a user can choose from."""

from __future__ import annotations

from pathlib import Path

from in_graph_lora.trainer.data import folders
from in_graph_lora.trainer.data.folders import DEEPEST, folders_below


def names(root: Path) -> list[str]:
    return [f.name for f in folders_below(root)[0]]


def test_folders_are_listed_by_name_with_the_pictures_in_each(tmp_path):
    for path in ("b10", "b2/10_dog", ".hidden/x", "empty"):
        (tmp_path / path).mkdir(parents=True)
    for path in ("b2/a.JPG", "b2/10_dog/a.png", "b2/10_dog/b.mp4", "b2/10_dog/a.txt", "b2/.c.png", "top.png"):
        (tmp_path / path).touch()
    found, more = folders_below(tmp_path)
    assert [(f.name, f.pictures) for f in found] == [("b2", 1), ("b2/10_dog", 2), ("b10", 0), ("empty", 0)]
    assert not more
    assert all(f.changed == (tmp_path / f.name).stat().st_mtime for f in found)


def test_links_are_not_followed(tmp_path):
    root, outside = tmp_path / "input", tmp_path / "outside"
    (outside / "secret").mkdir(parents=True)
    root.mkdir()
    (root / "leak").symlink_to(outside, target_is_directory=True)
    (root / "round").symlink_to(root, target_is_directory=True)
    assert names(root) == []


def test_depth_and_number_are_bounded(tmp_path, monkeypatch):
    (tmp_path / "/".join("abcdefghi")).mkdir(parents=True)
    assert len(names(tmp_path)) == DEEPEST
    monkeypatch.setattr(folders, "MOST", 3)
    found, more = folders_below(tmp_path)
    assert ([f.name for f in found], more) == (["a", "a/b", "a/b/c"], True)


def test_exactly_as_many_as_are_listed_are_all(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folders, "MOST", 3)
    assert folders_below(tmp_path)[1] is False


def test_a_folder_that_is_not_there_has_none(tmp_path):
    assert folders_below(tmp_path / "gone") == ([], False)
