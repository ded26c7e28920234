"""The losses of training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 520, 300, 44
INK, LINE, GRID = (60, 60, 70), (44, 92, 214), (226, 228, 232)


def draw_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Image.Image:
    """One plot a log, side by side: loss against minutes. Lines of a log have `seconds` and `loss`."""
    picture = Image.new("RGB", (WIDTH * len(logs), HEIGHT), "white")
    for i, (title, log) in enumerate(logs.items()):
        _plot(ImageDraw.Draw(picture), i * WIDTH, title, log)
    return picture


def _plot(draw: ImageDraw.ImageDraw, left: int, title: str, log: Sequence[Mapping[str, Any]]) -> None:
    minutes = [line["seconds"] / 60 for line in log]
    losses = [line["loss"] for line in log]
    low, high = 0.9 * min(losses), sorted(losses)[int(0.97 * len(losses))]
    end = max(minutes)

    def x(minute: float) -> float:
        return left + MARGIN + (WIDTH - 2 * MARGIN) * minute / end

    def y(loss: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (min(loss, high) - low) / (high - low)

    for i in range(5):
        loss, minute = low + (high - low) * i / 4, end * i / 4
        draw.line([(x(0), y(loss)), (x(end), y(loss))], GRID)
        draw.text((left + 6, y(loss) - 5), f"{loss:.3f}", INK)
        draw.text((x(minute) - 8, HEIGHT - MARGIN + 8), f"{minute:.0f}", INK)
    draw.line([(x(m), y(v)) for m, v in zip(minutes, losses, strict=True)], LINE, 2)
    draw.text((left + MARGIN, 14), f"{title}: loss, {log[-1]['step']} steps; minutes on two cores", INK)
