"""Captions from a template."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from ..errors import DatasetError, shortened
from ..text import readable
from .records import Dataset, ImageRecord

OnExisting = Literal["keep", "overwrite", "append"]
PLACEHOLDERS = ("trigger", "class", "filename", "caption")

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_COMMA = re.compile(r"[,，]")


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
