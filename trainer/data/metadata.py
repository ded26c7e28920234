"""Captions that lie beside the pictures: text files, and rows of metadata."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError, shortened
from .framing import Box
from .parquet import parquet_rows
from .records import Problem

SIDECAR_SUFFIXES = (".txt", ".caption")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_COLUMNS = ("file_name", "image")
TEXT_COLUMNS = ("text", "prompt")
WEIGHT_COLUMN = "weight"
FOCUS_COLUMN = "focus"
CONTROL_COLUMN = re.compile(r"control_path(?:_[0-9]+)?")
MAX_CAPTION_BYTES = 1_000_000
MAX_METADATA_BYTES = 100_000_000


def read_text(path: Path, limit: int = MAX_CAPTION_BYTES) -> str:
    """The stripped text of a file in UTF-8, UTF-16 with a byte order mark, or GB18030.

    Raises DatasetError if it is over `limit` bytes, cannot be read, or is none of these.
    """
    try:
        if not path.is_file():
            raise DatasetError(f"{path.name}: is not a regular file; replace it by a text file")
        if (size := path.stat().st_size) > limit:
            raise DatasetError(f"{path.name}: has {size} bytes (limit {limit}); is it really a text file?")
        data = path.read_bytes()
    except OSError as e:
        why = (e.strerror or str(e)).lower()
        raise DatasetError(f"{path.name}: cannot be read ({why}); check its permissions") from e
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding).strip()
        except UnicodeDecodeError:
            continue
    raise DatasetError(f"{path.name}: is neither UTF-8 nor GB18030 text; save it as UTF-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What metadata says of one picture; None is what it does not say."""

    caption: str | None = None
    weight: float | None = None
    focus: Box | None = None
    """(left, top, right, bottom): pixels, or shares of the sides where none is above 1."""
    controls: tuple[Path, ...] = ()

    def focus_in(self, size: tuple[int, int]) -> Box | None:
        """`focus` in pixels of a picture of (width, height), as far as it lies within."""
        if self.focus is None:
            return None
        scales = (1, 1) if max(self.focus) > 1 else size
        left, top, right, bottom = (v * s for v, s in zip(self.focus, (*scales, *scales), strict=True))
        box = (min(left, size[0]), min(top, size[1]), min(right, size[0]), min(bottom, size[1]))
        return box if box[0] < box[2] and box[1] < box[3] else None

    def or_else(self, other: Described) -> Described:
        return Described(
            caption=other.caption if self.caption is None else self.caption,
            weight=other.weight if self.weight is None else self.weight,
            focus=other.focus if self.focus is None else self.focus,
            controls=self.controls or other.controls,
        )


def read_metadata(path: Path) -> tuple[dict[Path, Described], list[Problem]]:
    """What `metadata.csv` (with a header), `metadata.jsonl` (an object a line) or `metadata.parquet` says of
    pictures.

    Columns are `file_name` and `text`, or `image` and `prompt`; `weight`, `focus`, `control_path`,
    `control_path_1` … may join them or replace the text. A `control_path` may be a list, but in csv.
    Returns {picture beside or below the file: what is said of it}, and what was skipped: paths are only names
    to look up and never opened, and one that leads out of the folder is refused. Raises DatasetError if the
    file as a whole cannot be used.
    """
    found: dict[Path, Described] = {}
    bad: list[str] = []
    odd: list[str] = []
    outside: list[str] = []
    for line, row in _rows(path):
        name, caption = _first(row, FILE_COLUMNS), _first(row, TEXT_COLUMNS)
        given, around = _given(row, WEIGHT_COLUMN), _given(row, FOCUS_COLUMN)
        shown = _control_names(row)
        if not name or (caption is None and given is None and around is None and not shown):
            bad.append(f"{line} lacks a file name or a text")
        elif (target := _below(path.parent, name)) is None:
            bad.append(f"{line} names {name!r}, which is outside the folder")
        else:
            weight, focus = _positive(given), _box(around)
            if given is not None and weight is None:
                odd.append(f"{line} has the weight {given!r}; left out, write a number above 0")
            if around is not None and focus is None:
                odd.append(f"{line} has the focus {around!r}; left out, write left, top, right, bottom")
            caption = None if caption is None else caption.strip()
            controls = [c for c in (_below(path.parent, s) for s in shown) if c is not None]
            if len(controls) < len(shown):
                outside.append(line)
            found.setdefault(
                target, Described(caption=caption, weight=weight, focus=focus, controls=tuple(controls))
            )
    reasons = []
    if bad:
        reasons.append(f"{shortened(bad)}; these rows are skipped")
    if odd:
        reasons.append(shortened(odd))
    if outside:
        reasons.append(
            f"{shortened(outside)}: a control_path leads out of the folder; left out, copy the picture in"
        )
    return found, [Problem(path=path, reason=reason) for reason in reasons]


def _control_names(row: dict) -> list[str]:
    """The names under `control_path`, `control_path_1`, … in the order of the columns; "" is none."""
    columns = sorted(
        (k for k in row if isinstance(k, str) and CONTROL_COLUMN.fullmatch(k)), key=lambda k: (len(k), k)
    )
    names = [n for k in columns for n in (row[k] if isinstance(row[k], list) else [row[k]])]
    return [n for n in names if isinstance(n, str) and n.strip()]


def _given(row: dict, column: str) -> Any:
    """The value as it is written; None for a row without one."""
    given = row.get(column)
    return None if isinstance(given, str) and not given.strip() else given


def _positive(given: Any) -> float | None:
    """The number, if it is one and is finite and above 0."""
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 0 < value < math.inf else None


def _box(given: Any) -> Box | None:
    """Four numbers, in a list or with commas between them, if they are the edges of a box."""
    parts = re.split(r"[,\s]+", given.strip(" ()[]")) if isinstance(given, str) else given
    if not isinstance(parts, list) or len(parts) != 4:
        return None
    edges = [_at_least_0(part) for part in parts]
    left, top, right, bottom = edges
    if left is None or top is None or right is None or bottom is None or left >= right or top >= bottom:
        return None
    return left, top, right, bottom


def _at_least_0(given: Any) -> float | None:
    return 0.0 if given in (0, "0") else _positive(given)


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """(where it is, column → value) of each row."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        rows = parquet_rows(path, _is_known, lambda found: _check_columns(path, found), MAX_METADATA_BYTES)
        return ((f"row {n}", row) for n, row in rows)
    text = read_text(path, MAX_METADATA_BYTES)
    return ((f"line {n}", row) for n, row in (_csv_rows(path, text) if kind == ".csv" else _jsonl_rows(text)))


def _is_known(column: str) -> bool:
    names = (*FILE_COLUMNS, *TEXT_COLUMNS, WEIGHT_COLUMN, FOCUS_COLUMN)
    return column in names or bool(CONTROL_COLUMN.fullmatch(column))


def _check_columns(path: Path, columns: list[str]) -> None:
    known = set(filter(_is_known, columns))
    if not known & set(FILE_COLUMNS) or not known - set(FILE_COLUMNS):
        raise DatasetError(
            f"{path.name}: has the columns {columns}; name them file_name and text, or image and prompt"
        )


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = [c.strip() for c in reader.fieldnames or ()]
        _check_columns(path, columns)
        reader.fieldnames = columns
        for row in reader:
            yield reader.line_num, row
    except csv.Error as e:
        raise DatasetError(f"{path.name}: is not a CSV file ({e}); save it as comma-separated UTF-8") from e


def _jsonl_rows(text: str) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = {}
            yield number, row if isinstance(row, dict) else {}


def _first(row: dict, keys: tuple[str, ...]) -> str | None:
    return next((row[k] for k in keys if isinstance(row.get(k), str)), None)


def _below(folder: Path, name: str) -> Path | None:
    name = name.strip().replace("\\", "/")
    try:
        relative = os.path.relpath(name, folder) if os.path.isabs(name) else os.path.normpath(name)
    except ValueError:  # another drive
        return None
    return None if relative.split(os.sep)[0] == os.pardir else folder / relative
