"""Captions: reading those that lie beside the pictures, and writing new ones from a template."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import DatasetError, shortened
from ..text import readable
from .records import Dataset, ImageRecord, Problem

SIDECAR_SUFFIXES = (".txt", ".caption")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMNS = ("file_name", "image")
TEXT_COLUMNS = ("text", "prompt")
WEIGHT_COLUMN = "weight"
CONTROL_COLUMN = re.compile(r"control_path(?:_[0-9]+)?")
MAX_CAPTION_BYTES = 1_000_000
MAX_METADATA_BYTES = 100_000_000

OnExisting = Literal["keep", "overwrite", "append"]
PLACEHOLDERS = ("trigger", "class", "filename", "caption")

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_COMMA = re.compile(r"[,，]")


# --- reading ---------------------------------------------------------------------------------------------


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
    controls: tuple[Path, ...] = ()

    def or_else(self, other: Described) -> Described:
        return Described(
            caption=other.caption if self.caption is None else self.caption,
            weight=other.weight if self.weight is None else self.weight,
            controls=self.controls or other.controls,
        )


def read_metadata(path: Path) -> tuple[dict[Path, Described], list[Problem]]:
    """What `metadata.csv` (with a header) or `metadata.jsonl` (an object a line) says of pictures.

    Columns are `file_name` and `text`, or `image` and `prompt`; `weight`, `control_path`, `control_path_1` …
    may join them or replace the text. In jsonl a `control_path` may be a list.
    Returns {picture beside or below the file: what is said of it}, and what was skipped: paths are only names
    to look up and never opened, and one that leads out of the folder is refused. Raises DatasetError if the
    file as a whole cannot be used.
    """
    text = read_text(path, MAX_METADATA_BYTES)
    found: dict[Path, Described] = {}
    bad: list[str] = []
    odd: list[str] = []
    outside: list[str] = []
    for line, row in _csv_rows(path, text) if path.suffix.lower() == ".csv" else _jsonl_rows(text):
        name, caption, given = _first(row, FILE_COLUMNS), _first(row, TEXT_COLUMNS), _given_weight(row)
        shown = _control_names(row)
        if not name or (caption is None and given is None and not shown):
            bad.append(f"line {line} lacks a file name or a text")
        elif (target := _below(path.parent, name)) is None:
            bad.append(f"line {line} names {name!r}, which is outside the folder")
        else:
            weight = _positive(given)
            if given is not None and weight is None:
                odd.append(f"line {line} has the weight {given!r}")
            caption = None if caption is None else caption.strip()
            controls = [c for c in (_below(path.parent, s) for s in shown) if c is not None]
            if len(controls) < len(shown):
                outside.append(f"line {line}")
            found.setdefault(target, Described(caption=caption, weight=weight, controls=tuple(controls)))
    reasons = []
    if bad:
        reasons.append(f"{shortened(bad)}; these rows are skipped")
    if odd:
        reasons.append(f"{shortened(odd)}; left out, write a number above 0")
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


def _given_weight(row: dict) -> Any:
    """The weight as it is written; None for a row without one."""
    given = row.get(WEIGHT_COLUMN)
    return None if isinstance(given, str) and not given.strip() else given


def _positive(given: Any) -> float | None:
    """The number, if it is one and is finite and above 0."""
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 0 < value < math.inf else None


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = [c.strip() for c in reader.fieldnames or ()]
        said = {*TEXT_COLUMNS, WEIGHT_COLUMN, *filter(CONTROL_COLUMN.fullmatch, columns)}
        if not set(columns) & set(FILE_COLUMNS) or not set(columns) & said:
            raise DatasetError(
                f"{path.name}: has the columns {columns}; name them file_name and text, or image and prompt"
            )
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


# --- templates -------------------------------------------------------------------------------------------


def render(template: str, *, trigger: str, class_word: str, filename: str, caption: str) -> str:
    """`template` with {trigger}, {class}, {filename} and {caption} filled in.

    Values are put in as they are: braces in a caption stay braces. Gaps that empty values leave are closed:
    double spaces, doubled commas, commas at either end. The result is `readable`. Raises DatasetError for any
    other placeholder.
    """
    values = {"trigger": trigger, "class": class_word, "filename": filename, "caption": caption}
    for name in _PLACEHOLDER.findall(template):
        if name not in values:
            allowed = ", ".join(f"{{{p}}}" for p in PLACEHOLDERS)
            raise DatasetError(f"template: {{{name}}} is not a placeholder; use {allowed}")
    text = _PLACEHOLDER.sub(lambda m: values[m[1]].strip(), template)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?([,，])(?: ?[,，])*", r"\1", text)
    return readable(text.strip(" ,，"))


def apply(
    dataset: Dataset,
    *,
    template: str,
    trigger: str = "",
    class_word: str = "",
    on_existing: OnExisting = "keep",
) -> Dataset:
    """The dataset with captions from `template`; see `render`.

    keep: only pictures without a caption get one. overwrite: all do; {caption} is the one they had.
    append: what the caption does not say yet is added to it after a comma; {caption} is then empty.
    Pictures of the class get no trigger, which must stay the mark of the instance.

    Raises DatasetError if a caption ends up empty. One whose placeholders were all empty counts as empty:
    "a photo of {trigger}" without a trigger must not become "a photo of".
    """
    if on_existing not in ("keep", "overwrite", "append"):
        raise DatasetError(f"on_existing is {on_existing!r}; use keep, overwrite or append")
    done = [
        r.with_caption(_caption(r, template, "" if r.role == "class" else trigger, class_word, on_existing))
        for r in dataset.records
    ]
    if empty := [r.name for r in done if not r.caption]:
        verb = "has" if len(empty) == 1 else "have"
        raise DatasetError(
            f"{shortened(empty)} {verb} no caption, and the template {template!r} has nothing to fill in;"
            " type a trigger or a class word, or write .txt files beside the pictures"
        )
    return replace(dataset.with_records(done), trigger=trigger.strip() or dataset.trigger)


def _caption(
    record: ImageRecord, template: str, trigger: str, class_word: str, on_existing: OnExisting
) -> str:
    old, filename = record.caption.strip(), record.path.stem
    caption = "" if on_existing == "append" else old
    # Rendered also where it is not needed, so that a misspelt placeholder never goes unnoticed.
    new = render(template, trigger=trigger, class_word=class_word, filename=filename, caption=caption)
    values = {"trigger": trigger, "class": class_word, "filename": filename, "caption": caption}
    used = _PLACEHOLDER.findall(template)
    if used and not any(values[name].strip() for name in used):
        new = ""
    if on_existing == "overwrite" or not old:
        return new
    return _joined(old, new) if on_existing == "append" else old


def _joined(old: str, new: str) -> str:
    said = {part.strip().casefold() for part in _COMMA.split(old)}
    parts = [part.strip() for part in _COMMA.split(new)]
    return ", ".join([old.rstrip(" ,，"), *(p for p in parts if p and p.casefold() not in said)])
