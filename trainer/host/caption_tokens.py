"""What a text encoder is given for a caption."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .embedding import clip_with

if TYPE_CHECKING:
    from comfy.sd import CLIP

MAX_CHARACTERS = 5_000
"""Some 800 words. What is longer is not even tokenized."""

MAX_CHUNKS = 12
"""900 tokens, where there is only CLIP, which takes 75 at a time. Models that caption write 512 at most."""

_BRACKET = re.compile(r"[()]")

_NO_IDENTIFIER = "\ud800"
"""Half a character, which is in no text that can be tokenized."""


class CaptionTokenizer:
    """A caption is text, whatever is in it; "comfyui" reads it as CLIPTextEncode reads a prompt.

    There `(word:1.3)` is a weight and `embedding:name` a file that is loaded.
    """

    def __init__(self, clip: CLIP, syntax: str = "text") -> None:
        """syntax: `DataConfig.caption_syntax`."""
        self._literal = syntax == "text"
        self._clip: CLIP = without_embeddings(clip) if self._literal else clip

    def __call__(self, caption: str, **options: Any) -> Any:
        """The tokens, as `encode_from_tokens` takes them: for most encoders {part: chunks}.

        options: of the tokenizer, such as the pictures that it is shown.
        """
        if self._literal and _BRACKET.search(caption) and self._reads_escapes:
            caption = _BRACKET.sub(r"\\\g<0>", caption)
        return self._clip.tokenize(caption, **options)

    def fitted(self, caption: str) -> str:
        """The beginning of a caption that can be used: all of it, but for texts that are no captions."""
        text = caption[:MAX_CHARACTERS]
        while (chunks := _chunks(self(text))) > MAX_CHUNKS:
            text = text[: len(text) * MAX_CHUNKS // chunks]
        return text

    def with_vectors(self, placeholder: str, vectors: Mapping[str, Tensor]) -> CaptionTokenizer:
        """One that puts these vectors in the word's place; name of a text encoder → [n, d]."""
        own = copy.copy(self)
        own._clip = clip_with(self._clip, {placeholder: vectors})
        return own

    @cached_property
    def _reads_escapes(self) -> bool:
        """Whether a backslash before a bracket is left out: nearly all do it, not only those with weights."""
        return self._clip.tokenize(r"\(") == self._clip.tokenize("(")


def _chunks(tokens: Any) -> int:
    """How often the part of the text encoder runs that is made for the longest texts: T5 and an LLM once."""
    parts = tokens.values() if isinstance(tokens, dict) else ()
    return min((len(part) for part in parts if isinstance(part, list)), default=1)


def without_embeddings(part: Any) -> Any:
    """A copy of a CLIP, or of a tokenizer, whose tokenizers look for no embedding.

    Their identifier is changed rather than the text, so that the text is tokenized as one.
    """
    own = copy.copy(part)
    for name, value in vars(part).items():
        if hasattr(value, "tokenize_with_weights"):
            setattr(own, name, without_embeddings(value))
    if hasattr(own, "embedding_identifier"):
        own.embedding_identifier = _NO_IDENTIFIER
    return own
