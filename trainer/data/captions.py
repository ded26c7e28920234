"""Captions from a template, and from what else says something of a picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from ..errors import DatasetError, shortened
from ..text import comma_parts, readable
from .records import Dataset, ImageRecord

OnExisting = Literal["keep", "overwrite", "append"]
Source = Callable[[ImageRecord], str]
"""What is to be said of a picture: read from its name, or written by a model."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_COUNTER = re.compile(r"[ _-]+\d+$|[ _-]*\(\d+\)$")


def render(template: str, *, trigger: str, class_word: str, filename: str, caption: str) -> str:
    """`template` with {trigger}, {class}, {filename} and {caption} filled in.

    Values are put in as they are: braces in a caption stay braces. Gaps that empty values leave are closed:
    double spaces, doubled commas, commas at either end. The result is `readable`. Raises DatasetError for any
    other placeholder.
    """
    values = {"trigger": trigger, "class": class_word, "filename": filename, "caption": caption}
    return readable(closed(fill(template, values, "template")))


def fill(template: str, values: Mapping[str, str], field: str) -> str:
    """`template` with each {name} of `values` filled in, gaps and all; DatasetError for any other name."""
    for name in _PLACEHOLDER.findall(template):
        if name not in values:
            allowed = ", ".join(f"{{{p}}}" for p in values)
            raise DatasetError(f"{field}: {{{name}}} is not a placeholder; use {allowed}")
    return _PLACEHOLDER.sub(lambda m: values[m[1]].strip(), template)


def closed(text: str) -> str:
    """Without double spaces, doubled commas, and commas at either end."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?([,，])(?: ?[,，])*", r"\1", text)
    return text.strip(" ,，")


def apply(
    dataset: Dataset,
    *,
    template: str,
    trigger: str = "",
    class_word: str = "",
    on_existing: OnExisting = "keep",
    source: Source | None = None,
) -> Dataset:
    """The dataset with captions from `template`; see `render`.

    keep: only pictures without a caption get one. overwrite: all do; {caption} is the one they had.
    append: what the caption does not say yet is added to it after a comma; {caption} is then empty.
    Pictures of the class get no trigger, which must stay the mark of the instance.

    source: gives {caption} instead, and is asked for the pictures of `to_caption` only; a template that does
    not say where {caption} goes comes before it.

    Raises DatasetError if a caption ends up empty. One whose placeholders were all empty counts as empty:
    "a photo of {trigger}" without a trigger must not become "a photo of".
    """
    chosen = {id(r) for r in to_caption(dataset, on_existing)}

    def caption(record: ImageRecord) -> str:
        old = record.caption.strip()
        said = ("" if on_existing == "append" else old) if source is None else ""
        if source is not None and id(record) in chosen:
            said = source(record).strip()
        own_trigger = "" if record.role == "class" else trigger
        values = {
            "trigger": own_trigger, "class": class_word, "filename": record.path.stem, "caption": said
        }  # fmt: skip
        # Rendered also where it is not needed, so that a misspelt placeholder never goes unnoticed.
        new = _filled(template, values)
        if source is not None and "{caption}" not in template:
            new = ", ".join(part for part in (new, said) if part)
        if on_existing == "overwrite" or not old:
            return new
        return _joined(old, new) if on_existing == "append" else old

    done = [r.with_caption(caption(r)) for r in dataset.records]
    if empty := [r.name for r in done if not r.caption]:
        verb = "has" if len(empty) == 1 else "have"
        nothing = "has nothing to fill in" if source is None else "and the method give none"
        raise DatasetError(
            f"{shortened(empty)} {verb} no caption, and the template {template!r} {nothing};"
            " type a trigger or a class word, or write .txt files beside the pictures"
        )
    return replace(dataset.with_records(done), trigger=trigger.strip() or dataset.trigger)


def to_caption(dataset: Dataset, on_existing: OnExisting) -> list[ImageRecord]:
    """The pictures whose captions `apply` writes or adds to."""
    if on_existing not in ("keep", "overwrite", "append"):
        raise DatasetError(f"on_existing is {on_existing!r}; use keep, overwrite or append")
    return [r for r in dataset.records if on_existing != "keep" or not r.caption.strip()]


def existing(record: ImageRecord) -> str:
    return record.caption


def words_of_name(record: ImageRecord) -> str:
    """The name of the file as words: `red_fox_012.png` and `red fox (12).png` give `red fox`."""
    words = _COUNTER.sub("", record.path.stem) or record.path.stem
    return " ".join(words.replace("_", " ").split())


def _filled(template: str, values: dict[str, str]) -> str:
    """`render`, but empty where there are placeholders and nothing for any of them."""
    new = render(
        template,
        trigger=values["trigger"],
        class_word=values["class"],
        filename=values["filename"],
        caption=values["caption"],
    )
    used = _PLACEHOLDER.findall(template)
    return "" if used and not any(values[name].strip() for name in used) else new


def _joined(old: str, new: str) -> str:
    said = {part.casefold() for part in comma_parts(old)}
    return ", ".join([old.rstrip(" ,，"), *(p for p in comma_parts(new) if p.casefold() not in said)])
