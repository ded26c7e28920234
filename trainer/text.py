"""Text from outside: files, file names, widgets, scripts. Only what can be written and sent gets in."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import shortened

REPLACEMENT = "\ufffd"

_COMMA = re.compile(r"[,，]")
# Of a script that divides its words: Chinese and Japanese do not.
_LETTER = r"[^\W\u2e80-\U0003ffff]"
_PROMPT_SYNTAX = re.compile(r"[()]|embedding:")


def readable(text: str) -> str:
    """`text` with U+FFFD in the place of what is no character: halves of surrogate pairs, and NUL.

    JSON and names of files bring lone halves, which no tokenizer, file or page takes; NUL is a mark inside
    ComfyUI's tokenizer. Two halves that belong together become their character.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", REPLACEMENT)


def garbled(texts: Iterable[tuple[str, str]]) -> str | None:
    """What to tell the user of texts, given as (name, text), that hold U+FFFD; None when none does."""
    names = dict.fromkeys(name for name, text in texts if REPLACEMENT in text)
    if not names:
        return None
    where = shortened(names)
    return f"{REPLACEMENT} replaces what is no character in {where}; type it again, or save it as UTF-8"


def has_prompt_syntax(text: str) -> bool:
    """Whether CLIPTextEncode sees more in it than letters: weights, escaped brackets, embeddings."""
    return bool(_PROMPT_SYNTAX.search(text))


def occurrences(word: str) -> re.Pattern[str]:
    """Finds the word in a text, not within another one, in capitals or not. word: not empty."""
    return re.compile(f"(?<!{_LETTER}){re.escape(word)}(?!{_LETTER})", re.IGNORECASE)


def mentions(word: str, text: str) -> bool:
    """Whether the word is in the text; the empty word is in none."""
    return bool(word) and bool(occurrences(word).search(text))


def comma_parts(text: str) -> list[str]:
    """The tags of a caption: what is between its commas, stripped, without empty ones."""
    return [part for part in (p.strip() for p in _COMMA.split(text)) if part]


def lines(text: str) -> list[str]:
    """Those that are not empty, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]
