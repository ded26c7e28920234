"""Changes to captions that are there, wherever they came from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import ConfigError, DatasetError
from ..rules import Expression
from ..text import comma_parts
from .captions import closed, fill
from .records import Dataset, ImageRecord, Role

ARROW = "=>"
MAX_CHARACTERS = 20_000
"""Of a caption while it is edited: replacements can multiply."""

MAX_SECONDS = 10.0
"""For one expression in all captions together."""

_Edit = Callable[[str], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Edits:
    """In the order in which they are made."""

    replacements: str = ""
    """Lines of `find => replacement`; nothing behind the arrow takes the text away."""
    regex: bool = False
    """Whether `find` is a regular expression; else it is text, and capital letters count."""
    class_word: str = ""
    """This word becomes the trigger, wherever it stands as a word."""
    trigger: str = ""
    """Empty: the dataset's."""
    min_count: int = 1
    """A tag that fewer pictures have is dropped; 1 drops none."""
    prefix: str = ""
    suffix: str = ""
    """Put around the caption unless they are there; may hold {trigger}, {class} and {filename}."""


def edited(dataset: Dataset, edits: Edits) -> Dataset:
    """The dataset with its captions changed; pictures of the class never get the trigger.

    A caption can end up empty. Raises ConfigError for a line without an arrow or a wrong expression,
    DatasetError for another placeholder or a caption that grows beyond MAX_CHARACTERS.
    """
    trigger = edits.trigger.strip() or dataset.trigger
    class_word = edits.class_word.strip()
    if class_word and not trigger:
        raise ConfigError(
            f"class_word is {class_word!r} and there is no trigger to put in its place; type a trigger"
        )
    roles: set[Role] = {r.role for r in dataset.records}
    for_role = {role: _edits_in_order(edits, trigger, role) for role in roles}

    def replaced(record: ImageRecord) -> ImageRecord:
        caption = record.caption
        for edit in for_role[record.role]:
            caption = edit(caption)
            if len(caption) > MAX_CHARACTERS:
                raise DatasetError(
                    f"{record.name}: its caption grows beyond {MAX_CHARACTERS} characters; write replacements"
                    " that do not multiply"
                )
        return record.with_caption(caption if caption == record.caption else closed(caption))

    records = [replaced(r) for r in dataset.records]
    if edits.min_count > 1:
        records = _without_rare(records, edits.min_count, trigger)
    records = [r.with_caption(_surrounded(r, edits, trigger)) for r in records]
    return replace(dataset.with_records(records), trigger=trigger)


def _edits_in_order(edits: Edits, trigger: str, role: Role) -> list[_Edit]:
    lines = _replacements(edits, _without(trigger) if role == "class" else lambda text: text)
    word = edits.class_word.strip()
    return [*lines, _whole_word(word, trigger)] if word and role != "class" else lines


def _replacements(edits: Edits, adapted: _Edit) -> list[_Edit]:
    found: list[_Edit] = []
    for line in edits.replacements.splitlines():
        if not line.strip():
            continue
        find, arrow, by = (part.strip() for part in line.partition(ARROW))
        if not arrow or not find:
            raise ConfigError(
                f"replacements: {line[:80]!r} lacks an arrow or what to find; write find {ARROW} replacement"
            )
        found.append(_expression(find, adapted(by)) if edits.regex else _plain(find, adapted(by)))
    return found


def _plain(find: str, by: str) -> _Edit:
    return lambda caption: caption.replace(find, by)


def _expression(find: str, by: str) -> _Edit:
    expression = Expression(find, "replacements", r"\bgrey\b", MAX_SECONDS)
    return lambda caption: expression.replaced_in(caption, by)


def _whole_word(word: str, by: str) -> _Edit:
    """In any case of letters; a word ends where letters, digits and underscores do."""
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
    return lambda caption: pattern.sub(lambda _: by, caption)


def _without(word: str) -> _Edit:
    return _whole_word(word, "") if word else lambda text: text


def _without_rare(records: list[ImageRecord], min_count: int, trigger: str) -> list[ImageRecord]:
    def tags(record: ImageRecord) -> dict[str, str]:
        return {tag.casefold(): tag for tag in reversed(comma_parts(record.caption))}

    counts = Counter(tag for path in {r.path: r for r in records}.values() for tag in tags(path))
    rare = {tag for tag, count in counts.items() if count < min_count} - {trigger.casefold()}

    def kept(record: ImageRecord) -> str:
        parts = comma_parts(record.caption)
        left = [tag for tag in parts if tag.casefold() not in rare]
        return record.caption if len(left) == len(parts) else ", ".join(left)

    return [r.with_caption(kept(r)) for r in records]


def _surrounded(record: ImageRecord, edits: Edits, trigger: str) -> str:
    is_class = record.role == "class"
    own_trigger = "" if is_class else trigger
    values = {"trigger": own_trigger, "class": edits.class_word, "filename": record.path.stem}

    def filled(field: str) -> str:
        text = fill(getattr(edits, field), values, field)
        return _without(trigger)(text) if is_class else text

    caption, prefix, suffix = record.caption, filled("prefix"), filled("suffix")
    said = caption.casefold()
    before = "" if said.startswith(closed(prefix).casefold()) else prefix
    behind = "" if said.endswith(closed(suffix).casefold()) else suffix
    return closed(f"{before} {caption} {behind}") if before or behind else caption
