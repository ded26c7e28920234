"""Vectors in the place of a word, in ComfyUI's text encoders.

ComfyUI's tokenizers put the vectors of `embedding:name` into the list of tokens, and the text encoder takes
them as they are. A copy of a tokenizer to which we give vectors does the same with a word of the text: what
is trained is what `embedding:name` gives later, and no row of the text encoder's table can change.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..text import occurrences

if TYPE_CHECKING:
    from comfy.sd import CLIP

Embeddings = Mapping[str, Mapping[str, Tensor]]
"""placeholder → name of a text encoder, as in files → [n, d]."""

_MARK = "\ud800"
"""Half a character, which is in no text and no file's name. Behind it the number of an embedding."""


class _WithVectors:
    """In front of a tokenizer's class."""

    embedding_identifier: str
    embedding_key: str
    in_place: dict[str, Mapping[str, Tensor]]

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> Any:
        for i, placeholder in enumerate(self.in_place):
            if self.embedding_key in self.in_place[placeholder]:
                text = self._marked(text, placeholder, i)
        return super().tokenize_with_weights(text, *args, **kwargs)  # type: ignore[misc]

    def _marked(self, text: str, placeholder: str, i: int) -> str:
        """The word, also as `embedding:word`, becomes a name of ours, with a space on either side."""
        known = re.escape(self.embedding_identifier)
        found = re.compile(f"(?:{known})?{occurrences(placeholder).pattern}", re.IGNORECASE)

        def name(match: re.Match[str]) -> str:
            before, after = text[: match.start()][-1:], text[match.end() :][:1]
            spaces = ["" if not c or c.isspace() else " " for c in (before, after)]
            return f"{spaces[0]}{self.embedding_identifier}{_MARK}{i}{spaces[1]}"

        return found.sub(name, text)

    def _try_get_embedding(self, name: str) -> Any:
        if not name.startswith(_MARK):
            return super()._try_get_embedding(name)  # type: ignore[misc]
        own, *rest = name.split()
        vectors = list(self.in_place.values())[int(own[len(_MARK) :])]
        return vectors[self.embedding_key], own, " ".join(rest)


def clip_with(clip: CLIP, embeddings: Embeddings) -> CLIP:
    """A copy of a CLIP, which reads these words as these vectors; the weights are the same objects."""
    own = copy.copy(clip)
    own.tokenizer = _tokenizer_with(clip.tokenizer, embeddings)
    return own


def _tokenizer_with(part: Any, embeddings: Embeddings) -> Any:
    own = copy.copy(part)
    for name, value in vars(part).items():
        if hasattr(value, "tokenize_with_weights"):
            setattr(own, name, _tokenizer_with(value, embeddings))
    if _takes_embeddings(own):
        if not isinstance(own, _WithVectors):
            own.__class__ = type(type(own).__name__, (_WithVectors, type(own)), {})
        own.in_place = {**getattr(own, "in_place", {}), **embeddings}
    return own


def _takes_embeddings(part: Any) -> bool:
    return getattr(part, "embedding_directory", None) is not None and hasattr(part, "embedding_identifier")


def _encoders(clip: CLIP) -> Iterator[tuple[Any, Any]]:
    """(tokenizer, text model) of each part that reads embeddings."""
    named = {name.rpartition(".")[2]: module for name, module in clip.cond_stage_model.named_modules()}
    for name, leaf in _leaves(clip.tokenizer):
        model = named.get(name)
        if _takes_embeddings(leaf) and hasattr(model, "process_tokens"):
            yield leaf, model


def _leaves(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if hasattr(part, "embedding_identifier"):
        yield name, part
    for own, value in vars(part).items():
        if hasattr(value, "tokenize_with_weights"):
            yield from _leaves(value, own)


def initial_tokens(clip: CLIP, text: str) -> dict[str, tuple[Any, list[int]]]:
    """Name of a text encoder → its model and the text's tokens.

    Raises ModelError where ComfyUI gives the text encoder no embeddings, ConfigError for a text without
    tokens.
    """
    found = {}
    for leaf, model in _encoders(clip):
        end = -1 if leaf.tokenizer_adds_end_token else None
        found[leaf.embedding_key] = (model, list(leaf.tokenizer(text)["input_ids"])[leaf.tokens_start : end])
    if not found or not _tokenizes_vectors(clip, found):
        name = type(clip.cond_stage_model).__name__
        raise ModelError(
            f"ComfyUI gives the text encoder {name} no embeddings; train a LoRA without Textual Inversion"
        )
    if empty := [name for name, (_, tokens) in found.items() if not tokens]:
        raise ConfigError(f"initial_word {text!r} has no token in {empty[0]}; choose an ordinary word")
    return found


def _tokenizes_vectors(clip: CLIP, names: Iterable[str]) -> bool:
    """Not every tokenizer that is made of others gets along with what they give (HunyuanVideo's)."""
    try:
        clip_with(clip, {"x": {name: torch.zeros(1, 2) for name in names}}).tokenize("x")
    except RuntimeError:
        return False
    return True


@torch.no_grad()
def initial_vectors(clip: CLIP, text: str, count: int) -> dict[str, Tensor]:
    """Name of a text encoder → [count, d] fp32: each row the mean of the text's token embeddings."""
    out = {}
    for name, (model, tokens) in initial_tokens(clip, text).items():
        table: nn.Module = model.transformer.get_input_embeddings()
        ids = torch.tensor(tokens, device=table.weight.device)  # type: ignore[arg-type]
        out[name] = table(ids, out_dtype=torch.float32).mean(0).repeat(count, 1).clone()
    return out
