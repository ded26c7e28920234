"""Masks for inpaint models where a picture has none of its own.

A picture is then trained with MASKS of them, drawn from its digest: the whole picture, and rectangles or
ellipses whose sides are 0.3 to 0.9 of the picture's. Each makes a sample of its own, so an epoch shows the
picture MASKS times.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw

from .records import Dataset, ImageRecord

MASKS = 4


def with_drawn_masks(dataset: Dataset) -> Dataset:
    """Each picture without a mask as many times as masks are drawn for it; a held-out one once."""
    return dataset.with_records(replace(r, drawn_mask=i) for r in dataset.records for i in _numbers(r))


def _numbers(record: ImageRecord) -> list[int | None]:
    if record.mask is not None:
        return [None]
    return [1] if record.role == "validation" else [*range(MASKS)]


def drawn_mask(digest: str, number: int, size: tuple[int, int]) -> torch.Tensor:
    """[H, W], 0 or 1: 1 is what is painted anew. Number 0 is the whole picture. size: (width, height)."""
    width, height = size
    if number == 0:
        return torch.ones(height, width)
    dice = random.Random(f"{digest} {number}")
    sides = [max(1, round(s * dice.uniform(0.3, 0.9))) for s in size]
    left, top = (dice.randint(0, s - own) for s, own in zip(size, sides, strict=True))
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    shape = draw.rectangle if dice.random() < 0.5 else draw.ellipse
    shape((left, top, left + sides[0] - 1, top + sides[1] - 1), fill=1)
    return torch.from_numpy(np.array(mask, dtype=np.float32))
