"""What the text encoders on the canvas make of a trigger word."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..text import readable
from .caption_tokens import without_embeddings

if TYPE_CHECKING:
    from comfy.sd import CLIP

SUGGESTIONS = 3
MAX_CHARACTERS = 200
RAREST = 0.9
"""Vocabularies are sorted by how often their pieces occur, and what is this far down has hardly been seen:
`ohwx` and `sks`, each one token of CLIP, are at 0.97."""

_TRIED = 300
_LETTERS = "bcdfghjklmnpqrstvwxz"
_MARKS = ("</w>", "▁", "Ġ", "Ċ", "##")
"""How vocabularies write the beginning or the end of a word."""


@dataclass(frozen=True, kw_only=True)
class TriggerCheck:
    trigger: str
    tokens: Mapping[str, tuple[str, ...]]
    """Text encoder → the pieces that it reads."""
    ordinary: tuple[str, ...]
    """Text encoders that know the trigger, or a word of it, as a word."""
    suggestions: tuple[str, ...]

    @property
    def report(self) -> str:
        """Markdown."""
        rows = [
            f"| {name} | {len(pieces)} | {' · '.join(f'`{p}`' for p in pieces)} | {self._verdict(name)} |"
            for name, pieces in self.tokens.items()
        ]
        head = ["| text encoder | tokens | pieces | |", "|---|---|---|---|"]
        said = f"**{self.trigger}** is rare for {'this encoder' if len(rows) == 1 else 'these encoders'}."
        if self.ordinary:
            said = f"**{self.trigger}** is an ordinary word: what it means already comes along."
        return "\n".join([said, "", *head, *rows, "", f"Rarer: {', '.join(self.suggestions)}"])

    def _verdict(self, name: str) -> str:
        return "ordinary" if name in self.ordinary else "rare"


def check_trigger(clip: CLIP, trigger: str) -> TriggerCheck:
    """Tokens of the trigger in each text encoder, and words that would be rarer in all of them.

    A word is ordinary for an encoder that has it as one token, unless it is one of the rarest. Raises
    ModelError for no trigger, or a text encoder whose tokenizer cannot be asked.
    """
    trigger = " ".join(readable(trigger).split())
    if not trigger or len(trigger) > MAX_CHARACTERS:
        raise ModelError(
            f"trigger: has {len(trigger)} characters; type a word, of {MAX_CHARACTERS} characters at most"
        )
    leaves = dict(_leaves(without_embeddings(clip).tokenizer))
    if not leaves:
        name = type(clip.tokenizer).__name__
        raise ModelError(f"clip: the tokenizer {name} cannot be asked for its tokens; connect another CLIP")
    return TriggerCheck(
        trigger=trigger,
        tokens={name: tuple(_pieces(leaf, trigger)) for name, leaf in leaves.items()},
        ordinary=tuple(name for name, leaf in leaves.items() if _is_ordinary(leaf, trigger)),
        suggestions=_suggestions(leaves),
    )


def _leaves(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tokenizers that a tokenizer is made of, by the names that ComfyUI gives them."""
    if hasattr(part, "inv_vocab"):
        yield name, part
        return
    for own, value in vars(part).items():
        if hasattr(value, "tokenize_with_weights"):
            yield from _leaves(value, own)


def _ids(leaf: Any, text: str) -> list[int]:
    """Without those that begin, end and fill up a prompt."""
    ids = list(leaf.tokenizer(text)["input_ids"])[leaf.tokens_start :]
    end = getattr(leaf, "end_token", None)
    return ids[:-1] if ids and ids[-1] == end else ids


def _pieces(leaf: Any, text: str) -> Iterator[str]:
    for token in _ids(leaf, text):
        piece = leaf.inv_vocab.get(token, f"#{token}")
        yield (piece if isinstance(piece, str) else repr(piece)).strip("".join(_MARKS[1:3])) or "␣"


def _is_ordinary(leaf: Any, text: str) -> bool:
    """Whether a word of it is one token, and none of the rarest."""
    return any(_rank(leaf, w) < RAREST for word in text.split() for w in (word, f" {word}"))


def _rank(leaf: Any, word: str) -> float:
    """Where in the vocabulary a word stands that is one token, 0 to 1; 1 for any other."""
    ids = _ids(leaf, word)
    return ids[0] / max(len(leaf.inv_vocab), 1) if len(ids) == 1 else 1.0


def _suggestions(leaves: Mapping[str, Any]) -> tuple[str, ...]:
    """Words of no language, in as few tokens as they go, the rarest of the vocabularies first."""
    draw = random.Random(0)
    words = dict.fromkeys("".join(draw.sample(_LETTERS, 4)) for _ in range(_TRIED))
    rare = [w for w in words if not any(_is_ordinary(leaf, w) for leaf in leaves.values())]

    def cost(word: str) -> tuple[int, float]:
        ids = [(_ids(leaf, word), max(len(leaf.inv_vocab), 1)) for leaf in leaves.values()]
        most = max(len(tokens) for tokens, _ in ids)
        return most, -sum(min(tokens) / size for tokens, size in ids)

    return tuple(sorted(rare, key=cost)[:SUGGESTIONS])
