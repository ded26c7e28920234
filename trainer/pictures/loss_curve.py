"""The loss as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .drawing import PAPER, writer

SMOOTHING = 0.9
"""Weight of the past in the smoothed line; the page's chart has the same."""

_INK, _RAW, _GRID = "#1f2430", "#b9c3d6", "#e8ebf1"
_ENLARGED = 4  # Pillow draws lines without smooth edges


def smoothed(losses: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Exponential moving average, corrected for its start (as Adam corrects its moments)."""
    out, mean = [], 0.0
    for i, loss in enumerate(losses, start=1):
        mean = weight * mean + (1 - weight) * loss
        out.append(mean / (1 - weight**i))
    return out


def loss_curve(
    losses: Sequence[float], steps: int | None = None, size: tuple[int, int] = (640, 360)
) -> Image.Image:
    """Raw loss in grey, smoothed loss in ink, over the `steps` of the whole run. Losses may be empty."""
    width, height = size
    left, top, right, bottom = 56, 28, width - 14, height - 30
    finite = [(i, x) for i, x in enumerate(losses) if math.isfinite(x)]
    values = [x for _, x in finite]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = (high - low) or 1.0
    total = max(steps or len(losses), 2)

    def point(i: float, value: float) -> tuple[float, float]:
        return left + (right - left) * i / (total - 1), bottom - (bottom - top) * (value - low) / span

    levels = [low + span * k / 4 for k in range(5)]
    marks = [round((total - 1) * k / 4) for k in range(5)]
    means = smoothed(values)
    image = _lines(
        size,
        [([(left, point(0, v)[1]), (right, point(0, v)[1])], _GRID, 1) for v in levels]
        + [
            ([point(i, x) for i, x in finite], _RAW, 1),
            ([point(i, x) for (i, _), x in zip(finite, means, strict=True)], _INK, 2),
        ],
    )
    text = writer(12)
    for value in levels:
        text.draw(image, (6, point(0, value)[1] - 7), f"{value:.4f}"[:7])
    for step in marks:
        text.draw(image, (point(step, low)[0] - 8, bottom + 8), str(step + 1))
    if means:
        of = steps or len(losses)
        text.draw(image, (left, 7), f"loss {means[-1]:.4f} (smoothed) at step {len(losses)} of {of}")
    return image


def _lines(
    size: tuple[int, int], lines: Sequence[tuple[Sequence[tuple[float, float]], str, int]]
) -> Image.Image:
    """(points, colour, thickness) with smooth edges."""
    n = _ENLARGED
    image = Image.new("RGB", (size[0] * n, size[1] * n), PAPER)
    draw = ImageDraw.Draw(image)
    for points, colour, thickness in lines:
        if len(points) > 1:
            draw.line([(x * n, y * n) for x, y in points], fill=colour, width=thickness * n, joint="curve")
    return image.resize(size, Image.Resampling.BOX)
