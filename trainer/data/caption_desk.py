"""Captions that are edited by hand, picture by picture, of datasets that were loaded in this process.

A page names a dataset and the number of a picture; it never names a file.
"""

from __future__ import annotations

import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError, StorageError, TrainerError
from ..text import readable
from .caption_files import caption_on_disk, write_caption
from .pixels import opened
from .records import Dataset, ImageRecord

SIDE = 160
"""Longest side of a thumbnail, in pixels."""
MAX_CHARACTERS = 20_000
KEPT_DATASETS = 32
KEPT_THUMBNAILS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """A new caption of picture `number`, for one that read `was` when it was edited."""

    number: int
    was: str
    caption: str


class Desk:
    """One dataset, with the captions that a node has left.

    loaded: picture → its caption as it was read, of those with a caption file of their own; it may be there
    or not. A node may have changed the caption since.
    """

    def __init__(self, dataset: Dataset, loaded: Mapping[Path, str]) -> None:
        self.records = dataset.records
        self._loaded = {r.path: loaded[r.path] for r in dataset.records if r.path in loaded}
        self._written: dict[int, str] = {}
        self._lock = threading.Lock()

    def pictures(self) -> list[dict[str, Any]]:
        """name, caption and, where it cannot be edited, why; in the dataset's order."""
        return [self._told(number, record) for number, record in enumerate(self.records)]

    def _told(self, number: int, record: ImageRecord) -> dict[str, Any]:
        told: dict[str, Any] = {"name": record.name, "caption": self._written.get(number, record.caption)}
        try:
            told["caption"] = self._now(number)
        except TrainerError as error:
            told["refused"] = str(error)
        return told

    def _now(self, number: int) -> str:
        """The caption to be edited. Raises DatasetError where it cannot be, or its file is another than was
        loaded."""
        record = self.records[number]
        if record.path not in self._loaded:
            raise DatasetError(
                f"{record.name}: has no caption file of its own, since it does not come from a plain folder;"
                " use Edit Captions"
            )
        if record.captions:
            raise DatasetError(f"{record.name}: has several captions; edit their file")
        shown = self._written.get(number, record.caption)
        now = caption_on_disk(record)
        if now is None or now == shown:
            return shown
        if now not in (record.caption, self._loaded[record.path]):
            raise DatasetError(
                f"{record.name}: its caption is another one than was loaded; run the graph again"
            )
        return record.caption

    def save(self, edits: Sequence[Edit]) -> dict[str, Any]:
        """Write captions beside their pictures. Those that were refused are named with the reason, and with
        what the caption is now; all others are saved."""
        saved: list[int] = []
        refused: list[dict[str, Any]] = []
        with self._lock:
            for edit in edits:
                record = self.records[edit.number]
                caption = readable(edit.caption.replace("\r\n", "\n")).strip()
                try:
                    if self._now(edit.number) != edit.was:
                        raise DatasetError(
                            f"{record.name}: was edited elsewhere meanwhile; open the captions again"
                        )
                    write_caption(record, caption)
                except TrainerError as error:
                    refused.append({"number": edit.number, "error": str(error)})
                    continue
                self._written[edit.number] = caption
                saved.append(edit.number)
        return {"saved": saved, "refused": refused}

    def edit(self, number: Any, was: Any, caption: Any) -> Edit:
        """Checked as it came from a page.

        Raises StorageError when there is no such picture, ValueError when it is no edit at all.
        """
        if not isinstance(was, str) or not isinstance(caption, str) or type(number) is not int:
            raise ValueError("an edit has a number, a text that was, and a caption")
        if len(caption) > MAX_CHARACTERS:
            raise ValueError(f"a caption has at most {MAX_CHARACTERS} characters")
        self.record(number)
        return Edit(number=number, was=was, caption=caption)

    def record(self, number: int) -> ImageRecord:
        """Raises StorageError when there is no such picture."""
        if not 0 <= number < len(self.records):
            raise StorageError("there is no such picture in the dataset; open the captions again")
        return self.records[number]


class Desks:
    """The datasets that were loaded last, by ids that nobody can guess."""

    def __init__(self) -> None:
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._loaded: dict[Path, str] = {}
        self._thumbnails: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, dataset: Dataset, folders: Iterable[Path]) -> str:
        """A dataset as it was read. folders: where captions are read from files beside their pictures."""
        plain = tuple(folders)
        own = {r.path: r.caption for r in dataset.records if any(map(r.path.is_relative_to, plain))}
        with self._lock:
            self._loaded.update(own)
        return self.add(dataset)

    def add(self, dataset: Dataset) -> str:
        """A dataset as a node has left it: only of pictures that `load` has seen captions can be written."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._desks[name] = Desk(dataset, self._loaded)
            while len(self._desks) > KEPT_DATASETS:
                self._desks.popitem(last=False)
        return name

    def find(self, name: str) -> Desk:
        """Raises StorageError when no such dataset was loaded in this process."""
        with self._lock:
            desk = self._desks.get(name)
            if desk is not None:
                self._desks.move_to_end(name)
        if desk is None:
            raise StorageError("there is no such dataset any more; run the graph again")
        return desk

    def thumbnail(self, name: str, number: int) -> bytes:
        """A JPEG of at most SIDE x SIDE pixels. Raises StorageError, DatasetError."""
        record = self.find(name).record(number)
        with self._lock:
            kept = self._thumbnails.get(record.digest)
        if kept is None:
            kept = _thumbnail(record)
            with self._lock:
                self._thumbnails[record.digest] = kept
                while len(self._thumbnails) > KEPT_THUMBNAILS:
                    self._thumbnails.popitem(last=False)
        return kept


def _thumbnail(record: ImageRecord) -> bytes:
    image, _ = opened(record)
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return data.getvalue()
