"""Textual Inversion."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..text import readable
from .checks import check_range, demand

# What ComfyUI's and other readers' prompts divide at, and where names of tensors do.
_NO_PLACEHOLDER = re.compile(r"[\s()\[\]{}:,.|\\]")
NO_EMBEDDING_NAME = re.compile(r"[\s()\[<,]")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
    """Textual Inversion (Gal et al. 2022): vectors that stand for a word in the text encoder's input."""

    vectors: int = 0
    """How many the word gets; 0 trains none."""
    placeholder: str = ""
    """The word of the captions that the vectors stand for; "" only until the dataset's trigger is known."""
    initial_word: str = ""
    """Each vector begins as the mean of this text's token embeddings."""
    learning_rate: float = 5e-4
    """Of the vectors; the LoRA has its own."""
    with_lora: bool = False
    """Train a LoRA at the same time (pivotal tuning); without one the network stays as it is."""

    def __post_init__(self) -> None:
        for name in ("placeholder", "initial_word"):
            object.__setattr__(self, name, readable(getattr(self, name)).strip())
        check_range(self, 0, 75, "vectors", hint="1 to 16 is usual")
        check_range(self, 0, 1, "learning_rate", hint="5e-4 is usual")
        if not self.vectors:
            return
        word = self.placeholder
        demand(
            len(word) <= 64 and not _NO_PLACEHOLDER.search(word),
            f"placeholder is {word!r}; choose one word of up to 64 characters, without spaces, brackets,"
            " commas, colons and dots, such as aawxbc or <my-cat>",
        )
        demand(
            bool(self.initial_word),
            "initial_word is empty; choose a word for what the pictures show, such as cat or painting",
        )
