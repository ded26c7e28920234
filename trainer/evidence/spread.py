"""Distances of whole sets of pictures, by torchmetrics, which need not be installed.

Its metrics take any module as feature extractor; ours returns the features that a judge gave already.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .figures import BY_KEY, Measured
from .sight import Sight

FEWEST = 8
"""Pictures in each set for KID: half of them are drawn again and again."""
ENOUGH_FOR_FID = 2000
SUBSETS = 200
SPLITS = 10
"""Of the inception score, as in the paper."""
MISSING = "KID and FID are left out: torchmetrics is missing; pip install -r requirements-evidence.txt"


def available() -> bool:
    return importlib.util.find_spec("torchmetrics") is not None


class _AsGiven(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def figures(base: Sight, own: Sight, *, fid: bool) -> dict[str, Measured]:
    """Of the pictures' features. Nothing without torchmetrics, or with fewer than FEWEST pictures."""
    if not available() or len(base) < FEWEST or base.features is None or own.features is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps the features: they are here anyway
        found = {"kid": kid(base.features, own.features)}
        if fid:
            found["fid"] = frechet(base.features, own.features)
    return {key: Measured(figure=BY_KEY[key], whole=whole) for key, whole in found.items()}


def kid(base: Tensor, own: Tensor) -> tuple[float, float, int]:
    """(mean over halves of both sets, half the width of its 95 % interval, pictures).

    The spread of a half that is drawn without replacement about the whole is that of the whole about what it
    was drawn from.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    scale = base.shape[1] ** 0.5  # the kernel divides by the width; features of length 1 would all look alike
    metric: Any = KernelInceptionDistance(
        feature=_AsGiven(base.shape[1]), subsets=SUBSETS, subset_size=len(base) // 2
    )
    metric.update(base * scale, real=True)
    metric.update(own * scale, real=False)
    with torch.random.fork_rng(devices=[]):  # it draws from torch's own generator
        torch.manual_seed(0)
        mean, std = metric.compute()
    return mean.item(), 1.96 * std.item(), len(base)


def frechet(base: Tensor, own: Tensor) -> tuple[float, float, int]:
    """No interval: resampled sets have fewer different pictures, and the distance of small sets is biased."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric: Any = FrechetInceptionDistance(feature=_AsGiven(base.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(base.double(), real=True)
    metric.update(own.double(), real=False)
    return metric.compute().item(), math.nan, len(base)


def inception_score(logits: Tensor) -> dict[str, Measured]:
    """logits: [pictures, classes], of any classifier. Nothing without torchmetrics, or with too few pictures.

    The interval is that of a mean over SPLITS parts.
    """
    if not available() or len(logits) < 2 * SPLITS:
        return {}
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        metric: Any = InceptionScore(feature=_AsGiven(logits.shape[1]), splits=SPLITS)
    metric.update(logits.double())
    with torch.random.fork_rng(devices=[]):  # it shuffles by torch's own generator
        torch.manual_seed(0)
        mean, std = metric.compute()
    half = 1.96 * std.item() / SPLITS**0.5
    return {"is": Measured(figure=BY_KEY["is"], whole=(mean.item(), half, len(logits)))}


def few(count: int) -> str:
    """What is said of so many pictures, where that is too few."""
    return f" of {count} pictures says nothing; it needs {ENOUGH_FOR_FID}" if count < ENOUGH_FOR_FID else ""
