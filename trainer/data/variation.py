"""How a picture's caption changes from one time that it is shown to the next.

One of its captions is drawn; its tags are shuffled and some left out. A frozen text encoder encodes before
the first step, so then a fixed number of texts is drawn for each picture once, and one of these each time;
while the text encoder trains, every time has a text of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..config import ObjectiveConfig
from ..rng import stream
from ..text import comma_parts
from .batches import Showing


@dataclass(frozen=True, slots=True)
class Variation:
    """What is done to the tags of a caption, which commas divide."""

    shuffle: bool = False
    keep: int = 0
    """Tags at the beginning that stay where they are."""
    dropout: float = 0.0
    """Probability of each other tag to be left out; one tag always stays."""

    @classmethod
    def of(cls, config: ObjectiveConfig) -> Variation:
        return cls(config.tag_shuffle, config.keep_tags, config.tag_dropout)

    @property
    def changes(self) -> bool:
        return self.shuffle or self.dropout > 0

    def applied(self, caption: str, draws: torch.Generator) -> str:
        if not self.changes:
            return caption
        tags = comma_parts(caption)
        kept, others = tags[: self.keep], tags[self.keep :]
        if self.shuffle:
            others = [others[i] for i in torch.randperm(len(others), generator=draws).tolist()]
        if self.dropout:
            stays = torch.rand(len(others), generator=draws) >= self.dropout
            chosen = [tag for tag, stay in zip(others, stays.tolist(), strict=True) if stay]
            others = chosen if kept or chosen else others[:1]
        return ", ".join([*kept, *others])


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """The texts of one picture."""

    plain: str
    """As it was written first."""
    encoded: tuple[str, ...]
    """Of which one is drawn each time; a text may be there twice. () where they are drawn freely."""
    written: tuple[str, ...] = ()
    variation: Variation = Variation()

    @classmethod
    def fixed(cls, caption: str) -> Captions:
        return cls(plain=caption, encoded=(caption,))

    @classmethod
    def of(
        cls, written: Sequence[str], key: str, variation: Variation, *, count: int, seed: int, live: bool
    ) -> Captions:
        """count: texts that are encoded beforehand at most. live: the text encoder trains, so none is."""
        if len(written) == 1 and not variation.changes:
            return cls.fixed(written[0])
        if live:
            return cls(plain=written[0], encoded=(), written=tuple(written), variation=variation)
        if not variation.changes and len(written) <= count:
            return cls(plain=written[0], encoded=tuple(written))
        draws = stream(seed, f"texts of {key}")
        order: list[int] = torch.randperm(len(written), generator=draws).tolist()
        texts = (written[order[i % len(order)]] for i in range(count))
        return cls(plain=written[0], encoded=tuple(variation.applied(text, draws) for text in texts))

    def drawn(self, key: str, showing: Showing | None) -> tuple[int, str]:
        """(which of `encoded`, the text)"""
        if showing is None or len(self.encoded) == 1:
            return 0, self.encoded[0] if self.encoded else self.plain
        draws = showing.draws("caption", key)
        which = int(torch.randint(len(self.encoded or self.written), (), generator=draws))
        if self.encoded:
            return which, self.encoded[which]
        return which, self.variation.applied(self.written[which], draws)
