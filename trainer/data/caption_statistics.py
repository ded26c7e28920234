"""What the captions of a dataset are like, in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..text import comma_parts
from .records import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionStatistics:
    tags: tuple[tuple[str, int], ...]
    """(tag as it is first written, pictures that have it), most frequent first; tags end at commas."""
    without: int
    """Pictures without a caption."""
    lengths: tuple[tuple[str, int], ...]
    """(name of the picture, length of its caption), longest first, those without a caption left out."""

    @property
    def longest(self) -> tuple[str, int]:
        return self.lengths[0] if self.lengths else ("", 0)

    @property
    def mean_length(self) -> float:
        return sum(n for _, n in self.lengths) / len(self.lengths) if self.lengths else 0.0

    def over(self, limit: int) -> tuple[str, ...]:
        """Names of the pictures whose captions are longer."""
        return tuple(name for name, n in self.lengths if n > limit)


def words(caption: str) -> int:
    return len(caption.split())


def caption_statistics(dataset: Dataset, length: Callable[[str], int] = words) -> CaptionStatistics:
    """length: of a caption; in words unless a text encoder counts its tokens."""
    spelling: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for record in dataset.records:
        tags = {tag.casefold(): tag for tag in reversed(comma_parts(record.caption))}
        spelling |= {key: tag for key, tag in tags.items() if key not in spelling}
        counts.update(list(tags))
    texts = [(r.name, r.caption.strip()) for r in dataset.records]
    lengths = sorted(((n, length(text)) for n, text in texts if text), key=lambda item: -item[1])
    return CaptionStatistics(
        # By name where they are equally frequent, so that the order of pictures decides nothing.
        tags=tuple((spelling[tag], n) for tag, n in sorted(counts.items(), key=lambda t: (-t[1], t[0]))),
        without=sum(not text for _, text in texts),
        lengths=tuple(lengths),
    )
