"""What is measured: a row a figure. And its value over pictures, with an interval.

A figure is the mean of one number a picture, so that an interval can be drawn from the pictures themselves
(the percentile bootstrap, Efron 1979) and two sets of the same prompts and seeds can be compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ..rng import stream

RESAMPLES = 2000
LEVEL = 0.95
Good = Literal["higher", "lower"]
Needs = Literal["pictures", "judge", "text", "answers", "torchmetrics", "classifier", "lpips", "dataset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    key: str
    title: str
    literature: str
    """Its name there."""
    range: str
    good: Good
    kind: str
    """Which prompts' pictures it is over."""
    needs: Needs
    shown: bool = True
    """Whether it is in the report by default: what does not follow the truth is not. See docs/evidence.md."""

    def worse(self, change: float) -> bool:
        return change < 0 if self.good == "higher" else change > 0


FIGURES = (
    Figure(
        key="subject",
        title="subject fidelity",
        literature="CLIP-I, DINO (DreamBooth)",
        range="-1 to 1",
        good="higher",
        kind="trigger",
        needs="judge",
    ),
    Figure(
        key="prompt",
        title="prompt fidelity",
        literature="CLIP-T (DreamBooth)",
        range="-1 to 1",
        good="higher",
        kind="trigger",
        needs="text",
        shown=False,
    ),
    Figure(
        key="answers",
        title="questions answered with yes",
        literature="TIFA (Hu et al. 2023), in the words of VQAScore",
        range="0 to 1",
        good="higher",
        kind="trigger",
        needs="answers",
        shown=False,
    ),
    Figure(
        key="unclear",
        title="questions answered with neither yes nor no",
        literature="none",
        range="0 to 1",
        good="lower",
        kind="trigger",
        needs="answers",
        shown=False,
    ),
    Figure(
        key="diversity",
        title="diversity with the trigger",
        literature="DIV (DreamBooth), by the judge instead of LPIPS",
        range="0 to 2",
        good="higher",
        kind="trigger",
        needs="judge",
        shown=False,
    ),
    Figure(
        key="class_diversity",
        title="diversity of the class",
        literature="DIV (DreamBooth), by the judge instead of LPIPS",
        range="0 to 2",
        good="higher",
        kind="class",
        needs="judge",
    ),
    Figure(
        key="lpips_diversity",
        title="diversity of the class by LPIPS",
        literature="DIV (DreamBooth), LPIPS (Zhang et al. 2018)",
        range="0 to about 1",
        good="higher",
        kind="class",
        needs="lpips",
        shown=False,
    ),
    Figure(
        key="leak",
        title="leak into the class",
        literature="PRES (DreamBooth)",
        range="-1 to 1",
        good="lower",
        kind="class",
        needs="judge",
    ),
    Figure(
        key="drift",
        title="drift",
        literature="paired distance at equal seeds, over that of different pictures",
        range="0 to about 1",
        good="lower",
        kind="unrelated",
        needs="judge",
    ),
    Figure(
        key="class_drift",
        title="drift of the class",
        literature="paired distance at equal seeds, over that of different pictures",
        range="0 to about 1",
        good="lower",
        kind="class",
        needs="judge",
        shown=False,
    ),
    Figure(
        key="kid",
        title="drift of the distribution (KID)",
        literature="KID (Bińkowski et al. 2018), the judge's features",
        range="about 0 and more",
        good="lower",
        kind="unrelated",
        needs="torchmetrics",
    ),
    Figure(
        key="fid",
        title="drift of the distribution (FID)",
        literature="FID (Heusel et al. 2017), the judge's features",
        range="0 and more",
        good="lower",
        kind="unrelated",
        needs="torchmetrics",
    ),
    Figure(
        key="is",
        title="inception score",
        literature="IS (Salimans et al. 2016), the classes of your classifier",
        range="1 to the number of classes",
        good="higher",
        kind="unrelated",
        needs="classifier",
    ),
    Figure(
        key="copies",
        title="near copies of training pictures",
        literature="nearest neighbour in features (memorisation)",
        range="0 to 1",
        good="lower",
        kind="trigger",
        needs="judge",
    ),
    Figure(
        key="pixel_copies",
        title="near copies in pixels",
        literature="nearest neighbour in pixels (Carlini et al. 2023)",
        range="0 to 1",
        good="lower",
        kind="trigger",
        needs="pictures",
    ),
    Figure(
        key="pixel_drift",
        title="drift in pixels",
        literature="paired distance of 32x32 pixels, over that of different pictures",
        range="0 to about 1",
        good="lower",
        kind="unrelated",
        needs="pictures",
        shown=False,
    ),
    Figure(
        key="pixel_diversity",
        title="diversity in pixels",
        literature="mean pairwise distance of 32x32 pixels",
        range="0 to 1",
        good="higher",
        kind="class",
        needs="pictures",
    ),
    Figure(
        key="loss",
        title="held-out loss",
        literature="the training objective, unweighted, over the noise levels",
        range="0 and more",
        good="lower",
        kind="held-out pictures",
        needs="dataset",
        shown=False,
    ),
)
BY_KEY = {figure.key: figure for figure in FIGURES}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure's value. `values` has one number a picture; a figure over all of them at once has none."""

    figure: Figure
    values: Sequence[float] = ()
    whole: tuple[float, float, int] | None = None
    """(value, half the width of its interval, pictures) of a figure over all pictures at once."""
    levels: Sequence[float] = field(default=())
    """Of the held-out loss: at each noise level."""

    @property
    def value(self) -> float:
        return self.whole[0] if self.whole else sum(self.values) / len(self.values)

    @property
    def count(self) -> int:
        return self.whole[2] if self.whole else len(self.values)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 %. None for a single picture, of which nothing can be said."""
        if self.whole:
            value, half, _ = self.whole
            return (value - half, value + half) if math.isfinite(half) else None
        return bootstrap(self.values)

    def to_dict(self) -> dict[str, Any]:
        low_high = self.interval
        return {
            "value": self.value,
            "interval": list(low_high) if low_high else None,
            "pictures": self.count,
            "values": list(self.values),
            **({"levels": list(self.levels)} if self.levels else {}),
        }

    @classmethod
    def from_dict(cls, key: str, content: dict[str, Any]) -> Measured:
        """Raises LookupError, TypeError or ValueError for anything but what `to_dict` makes."""
        values = [float(v) for v in content["values"]]
        whole = None
        if not values:
            low_high = content["interval"]
            half = (float(low_high[1]) - float(low_high[0])) / 2 if low_high else math.nan
            whole = (float(content["value"]), half, int(content["pictures"]))
        return cls(figure=BY_KEY[key], values=values, whole=whole, levels=content.get("levels", ()))


def means_of_resamples(values: Sequence[float], seed: int) -> Tensor:
    """[RESAMPLES], float64: means over as many pictures, drawn with replacement."""
    rows = torch.tensor(values, dtype=torch.float64)
    drawn = torch.randint(len(rows), (RESAMPLES, len(rows)), generator=stream(seed, "bootstrap"))
    return rows[drawn].mean(1)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """The percentile interval of the mean; None for fewer than two values."""
    return quantiles(means_of_resamples(values, seed)) if len(values) > 1 else None


def quantiles(means: Tensor) -> tuple[float, float]:
    edge = (1 - LEVEL) / 2
    low, high = torch.quantile(means, torch.tensor([edge, 1 - edge], dtype=means.dtype)).tolist()
    return low, high


def change(before: Measured, after: Measured, paired: bool) -> tuple[float, tuple[float, float] | None]:
    """(after - before, its interval). paired: both are over the same prompts and seeds, in one order."""
    moved = after.value - before.value
    if before.whole or after.whole:
        halves = [(m.interval[1] - m.interval[0]) / 2 for m in (before, after) if m.interval]
        half = math.hypot(*halves) if len(halves) == 2 else math.nan
        return moved, (moved - half, moved + half) if math.isfinite(half) else None
    if min(before.count, after.count) < 2:
        return moved, None
    if paired:
        return moved, bootstrap([b - a for a, b in zip(before.values, after.values, strict=True)])
    apart = means_of_resamples(after.values, 0) - means_of_resamples(before.values, 1)
    return moved, quantiles(apart)
