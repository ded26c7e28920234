"""One picture that shows what will be trained: each picture as cropped, after its control pictures, its size,
repeats and caption."""

from __future__ import annotations

import math

import torch
from PIL import Image

from ..data.images import open_image
from ..data.pixels import opened
from ..data.records import Dataset, ImageRecord
from ..data.report import title
from ..data.views import View, views
from .drawing import to_tensor, writer

CELL = 192
LINE = 18
GAP = 8
COLUMNS = 6
CONTROL, CONTROLS = 64, 3
"""Side of a control picture, and how many are shown."""
INK, DIM, PAPER = (235, 235, 235), (160, 160, 160), (32, 32, 32)
MASKED_OUT = (200, 40, 40)


def contact_sheet(dataset: Dataset, max_images: int = 24) -> torch.Tensor:
    """[1, H, W, 3], float32, 0 to 1: the first `max_images` pictures under a line that counts them all.

    Raises DatasetError if a picture can no longer be read.
    """
    shown = dataset.records[:max_images]
    columns = max(3, min(COLUMNS, len(shown)))
    rows = math.ceil(len(shown) / columns)
    pitch = CELL + GAP, CELL + 2 * LINE + GAP
    sheet = Image.new("RGB", (columns * pitch[0] + GAP, rows * pitch[1] + LINE + 2 * GAP), PAPER)
    text = writer(13)

    def write(at: tuple[int, int], line: str, width: int, fill: tuple[int, int, int]) -> None:
        text.draw(sheet, at, text.cut(line, width), fill)

    write((GAP, GAP), title(dataset, len(shown)), sheet.width - 2 * GAP, INK)
    for i, record in enumerate(shown):
        x = GAP + i % columns * pitch[0]
        y = 2 * GAP + LINE + i // columns * pitch[1]
        shown_as = views(record, resolution=dataset.resolution)
        thumb = _cell(record, shown_as[0])
        sheet.paste(thumb, (x + (CELL - thumb.width) // 2, y + (CELL - thumb.height) // 2))
        write((x, y + CELL), _label(record, shown_as), CELL, DIM)
        write((x, y + CELL + LINE), record.caption or "(no caption)", CELL, INK)
    return to_tensor(sheet)


def _cell(record: ImageRecord, view: View) -> Image.Image:
    """The picture; with control pictures these in a column, an arrow, and the picture."""
    if not record.controls:
        return thumbnail(record, view, CELL)
    cell = Image.new("RGB", (CELL, CELL), PAPER)
    each = min(CONTROL, (CELL - LINE) // len(record.controls[:CONTROLS]))
    for i, control in enumerate(record.controls[:CONTROLS]):
        small = open_image(control.path)
        small.thumbnail((each, each), reducing_gap=3.0)
        cell.paste(small, ((CONTROL - small.width) // 2, i * each + (each - small.height) // 2))
    more = len(record.controls) - CONTROLS
    note = f"+{more} →" if more > 0 else "→"
    writer(13).draw(cell, (CONTROL - LINE, CELL - LINE), note, INK)
    thumb = thumbnail(record, view, CELL - CONTROL - GAP)
    cell.paste(thumb, (CELL - thumb.width, (CELL - thumb.height) // 2))
    return cell


def thumbnail(record: ImageRecord, view: View, side: int) -> Image.Image:
    """What the view shows, `side` pixels long; what a mask leaves out is tinted. Raises DatasetError."""
    scale = side / max(view.size)
    size = max(1, round(view.size[0] * scale)), max(1, round(view.size[1] * scale))
    source, hidden = opened(record)
    image = view.picture(source, size)
    if hidden is None:
        return image
    tinted = Image.blend(image, Image.new("RGB", size, MASKED_OUT), 0.6)
    mask = (view.cut_mask(hidden, size) * 255).round().to(torch.uint8).numpy()
    return Image.composite(image, tinted, Image.fromarray(mask))


def _label(record: ImageRecord, shown_as: list[View]) -> str:
    width, height = shown_as[0].size
    more = f" · {len(shown_as)} views" if len(shown_as) > 1 else ""
    role = "" if record.role == "instance" else f" {record.role}"
    weight = "" if record.weight == 1 else f" weight {record.weight:g}"
    clip = record.clip
    rate = f" {clip.fps:.4g} fps" if clip and clip.fps else ""
    length = f" · {clip.frames} frames{rate}" if clip else ""
    return f"{width}x{height} · {record.repeats}x{role}{weight}{more}{length}"
