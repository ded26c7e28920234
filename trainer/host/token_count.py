"""How a text encoder counts captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..data.report import TokenCount
from .caption_tokens import CaptionTokenizer

if TYPE_CHECKING:
    from comfy.sd import CLIP

_ENDS = 2
"""Tokens that begin and end what is read at once."""
_NO_LIMIT = 10_000
"""ComfyUI gives T5 and language models a length of 99,999,999."""


def token_count(clip: CLIP) -> TokenCount:
    """Of the part of a text encoder that reads the longest texts."""
    tokenize = CaptionTokenizer(clip)

    def tokens(caption: str) -> int:
        parts = tokenize(caption, return_word_ids=True)
        return max((_words(part) for part in parts.values()), default=0) if isinstance(parts, dict) else 0

    lengths = [
        own.max_length
        for own in vars(clip.tokenizer).values()
        if isinstance(getattr(own, "max_length", None), int)
    ]
    longest = max(lengths, default=_NO_LIMIT)
    return TokenCount(tokens=tokens, limit=0 if longest >= _NO_LIMIT else longest - _ENDS)


def _words(part: Any) -> int:
    """Tokens of the caption itself: ComfyUI numbers words from 1, and 0 begins, ends and fills."""
    return sum(token[-1] != 0 for chunk in part for token in chunk)
