"""What a judge says of pictures, and what their pixels say without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ModelError

AT_ONCE = 16
"""Pictures a pass of the judge."""
LOW_PASS = 32
"""Side in pixels of what is compared without a judge."""

_EXACT = "donot_use_mm_for_euclid_dist"


class Judge(Protocol):
    """A network that tells pictures apart, and perhaps reads."""

    name: str
    digest: str
    """Of its weights."""
    reads: bool
    """Whether `read` gives features in the space of `see`."""

    def see(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[N, D], any length."""
        ...

    def read(self, texts: Sequence[str]) -> Tensor:
        """[N, D], any length."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Some pictures as they are compared."""

    pixels: Tensor
    """[N, 3 · LOW_PASS²] in 0..1: the centre square, shrunk."""
    features: Tensor | None = None
    """[N, D] fp32 of length 1; None without a judge."""

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self, chosen: Sequence[int]) -> Sight:
        index = torch.tensor(chosen, dtype=torch.long)
        return Sight(
            pixels=self.pixels[index], features=None if self.features is None else self.features[index]
        )


def look(
    judge: Judge | None,
    pictures: Sequence[Callable[[], Image.Image]],
    what: str,
    on_seen: Callable[[int, int], None] = lambda done, of: None,
) -> Sight:
    """pictures: opened one batch at a time. what: for messages.

    Raises ModelError when the judge gives what is no number.
    """
    pixels, features = [], []
    for start in range(0, len(pictures), AT_ONCE):
        on_seen(start, len(pictures))
        some = [picture() for picture in pictures[start : start + AT_ONCE]]
        pixels += [low_pass(picture) for picture in some]
        if judge is not None:
            features.append(checked(judge, judge.see(some), what))
    return Sight(pixels=torch.stack(pixels), features=torch.cat(features) if features else None)


def checked(judge: Judge, features: Tensor, what: str) -> Tensor:
    """[N, D] fp32 of length 1."""
    features = features.float().cpu()
    if not features.isfinite().all():
        raise ModelError(
            f"the judge {judge.name} gives NaN or infinite features of {what}; load it in fp32 (start ComfyUI"
            " with --fp32-text-enc) or choose another judge"
        )
    return normalize(features, dim=1)


def low_pass(picture: Image.Image) -> Tensor:
    """[3 · LOW_PASS²]"""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    small = picture.convert("RGB").resize(
        (LOW_PASS, LOW_PASS), Image.Resampling.BOX, (left, top, left + side, top + side)
    )
    return torch.from_numpy(np.array(small, dtype=np.float32) / 255).flatten()


def feature_distance(a: Sight, b: Sight) -> Tensor:
    """[len(a), len(b)]: 1 - cosine, 0 to 2, as half the squared distance: exact for equal pictures."""
    assert a.features is not None
    assert b.features is not None
    return torch.cdist(a.features, b.features, compute_mode=_EXACT).square() / 2


def pixel_distance(a: Sight, b: Sight) -> Tensor:
    """[len(a), len(b)]: root mean square, 0 to 1."""
    return torch.cdist(a.pixels, b.pixels, compute_mode=_EXACT) / a.pixels.shape[1] ** 0.5
