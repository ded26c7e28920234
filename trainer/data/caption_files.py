"""Captions written beside their pictures."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DatasetError, shortened
from ..files import write_text, write_whole
from ..text import readable
from .metadata import SIDECAR_SUFFIXES, read_text
from .records import Dataset, ImageRecord, Problem

BACKUP = ".bak"


@dataclass(kw_only=True, slots=True)
class Written:
    """What was done, in names of files."""

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Files with other captions, which were not to be overwritten."""
    refused: list[Problem] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """For the user."""
        written = len(self.new) + len(self.changed)
        lines = [f"{written} caption files written, {len(self.same)} were so already"]
        if self.kept:
            lines.append(
                f"not overwritten: {shortened(self.kept)}; choose write_sidecars overwrite to replace them"
            )
        return [*lines, *(f"not written: {problem}" for problem in self.refused)]


def write_captions(dataset: Dataset, *, overwrite: bool, leave: Path | None = None) -> Written:
    """Write each caption into the file that Load Dataset reads it from: `name.txt`, or `name.caption`.

    A file with another caption stays as it is unless `overwrite`; what it held before the first time is then
    kept in `name.txt.bak`. Never through links. leave: a folder whose pictures are not the user's own files.
    Raises StorageError when a file cannot be written; those before it are whole.
    """
    done = Written()
    captions: dict[Path, str] = {}
    for record in dataset.records:
        if not (caption := record.caption.strip()):
            continue
        if leave is not None and record.path.parent == leave:
            done.refused.append(Problem(path=record.path, reason="comes from the graph and has no folder"))
            continue
        path = _sidecar(record)
        if captions.setdefault(path, caption) != caption:
            reason = f"reads {path.name}, and so does a picture with another caption; rename one of the two"
            done.refused.append(Problem(path=record.path, reason=reason))
            continue
        try:
            _write(path, caption, overwrite, done)
        except DatasetError as error:
            reason = str(error).removeprefix(f"{path.name}: ")
            done.refused.append(Problem(path=path, reason=reason))
    return done


def caption_on_disk(record: ImageRecord) -> str | None:
    """What the file beside the picture says; None when there is none. Raises DatasetError."""
    path = _sidecar(record)
    mode = _mode(path)
    if mode is None:
        return None
    _check_file(path, mode)
    return readable(read_text(path))


def write_caption(record: ImageRecord, caption: str) -> None:
    """Write one caption, which may be empty, by the rules of `write_captions`.

    Raises DatasetError where its file is none, StorageError when it cannot be written.
    """
    _write(_sidecar(record), caption, overwrite=True, done=Written())


def _sidecar(record: ImageRecord) -> Path:
    """The file that the caption is read from, or would be."""
    paths = [record.path.with_name(record.path.stem + suffix) for suffix in SIDECAR_SUFFIXES]
    return next((path for path in paths if _mode(path) is not None), paths[0])


def _mode(path: Path) -> int | None:
    """Of the file itself, not of what it links to; None when there is none."""
    try:
        return path.lstat().st_mode
    except OSError:
        return None


def _write(path: Path, caption: str, overwrite: bool, done: Written) -> None:
    mode = _mode(path)
    if mode is None:
        if write_whole(path, f"{caption}\n".encode(), replace=False):
            done.new.append(path.name)
            return
        mode = path.lstat().st_mode  # somebody else has just written it
    _check_file(path, mode)
    old = read_text(path)
    if old == caption:
        done.same.append(path.name)
    elif old and not overwrite:
        done.kept.append(path.name)
    else:
        if old:
            write_whole(path.with_name(path.name + BACKUP), path.read_bytes(), replace=False)
        write_text(path, f"{caption}\n")
        done.changed.append(path.name)


def _check_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise DatasetError(f"{path.name}: is a link or no file; replace it by a text file")
