"""The loss as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .drawing import INK, PAPER, load_font

_RAW, _GRID = "#b9c3d6", "#e8ebf1"


def smoothed(losses: Sequence[float], weight: float = 0.95) -> list[float]:
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
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    font = load_font(12)
    finite = [x for x in losses if math.isfinite(x)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    span = (high - low) or 1.0
    total = max(steps or len(losses), 2)

    def point(i: int, value: float) -> tuple[float, float]:
        return left + (right - left) * i / (total - 1), bottom - (bottom - top) * (value - low) / span

    for k in range(5):
        value = low + span * k / 4
        y = point(0, value)[1]
        draw.line([(left, y), (right, y)], fill=_GRID)
        draw.text((6, y - 7), f"{value:.4f}"[:7], fill=INK, font=font)
    for k in range(5):
        step = round((total - 1) * k / 4)
        draw.text((point(step, low)[0] - 8, bottom + 8), str(step + 1), fill=INK, font=font)
    raw = [point(i, x) for i, x in enumerate(losses) if math.isfinite(x)]
    smooth = [point(i, x) for i, x in enumerate(smoothed(finite))]
    for line, colour, thick in ((raw, _RAW, 1), (smooth, INK, 2)):
        if len(line) > 1:
            draw.line(line, fill=colour, width=thick, joint="curve")
    if finite:
        title = f"loss {smoothed(finite)[-1]:.4f} (smoothed) at step {len(losses)} of {steps or len(losses)}"
        draw.text((left, 7), title, fill=INK, font=font)
    return image
