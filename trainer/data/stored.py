"""Samples whose latents and conditions lie in a store: light, so memory is flat however many there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .batches import CachedSample, Showing

if TYPE_CHECKING:
    from ..ports import Controls
    from .variation import Captions
    from .views import View


class SampleLost(Exception):  # noqa: N818 - no error: it is encoded again and the run goes on
    """An entry that a sample needs is not there any more, or was altered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSample:
    """A `batches.Sample` that is loaded when its batch is due."""

    key: str
    bucket: tuple[int, ...]
    captions: Captions
    repeats: int
    weight: float
    view: View
    latent: str
    """Key of the entry with latent and mask."""
    conditions: tuple[str, ...] = ()
    """Keys, one for each of the captions; () while the text encoder trains."""
    empty: str = ""
    class_condition: str = ""
    references: Callable[[], Controls] | None = None
    """Reads its control pictures, while the text encoder trains."""
    read: Callable[[StoredSample, int, str], CachedSample]
    """(sample, which condition, caption) → what is loaded; raises SampleLost."""

    @property
    def caption(self) -> str:
        return self.captions.plain

    def load(self, showing: Showing | None = None) -> CachedSample:
        which, caption = self.captions.drawn(self.key, showing)
        return self.read(self, which, caption)
