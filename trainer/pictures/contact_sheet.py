"""One picture that shows what will be trained: each picture as cropped, after its control pictures, its size,
repeats and caption."""

from __future__ import annotations

import math

import torch
from PIL import Image

from ..data.buckets import bucket_size, group_by_bucket
from ..data.images import cover_box, open_image
from ..data.records import Dataset, ImageRecord
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
        bucket = bucket_size(*record.size, resolution=dataset.resolution)
        thumb = _cell(record, bucket)
        sheet.paste(thumb, (x + (CELL - thumb.width) // 2, y + (CELL - thumb.height) // 2))
        write((x, y + CELL), _label(record, bucket), CELL, DIM)
        write((x, y + CELL + LINE), record.caption or "(no caption)", CELL, INK)
    return to_tensor(sheet)


def title(dataset: Dataset, shown: int | None = None) -> str:
    """For example "12 images · 2 masked · 1 skipped · 3 buckets"."""
    buckets = group_by_bucket((r.size for r in dataset.records), resolution=dataset.resolution)
    counts = ((len(dataset), "image"), (len(buckets), "bucket"))
    images, kinds = (f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts)
    more = f" · first {shown} shown" if shown is not None and shown < len(dataset) else ""
    masks = sum(r.mask is not None for r in dataset.records)
    masked = f" · {masks} masked" if masks else ""
    controls = sum(bool(r.controls) for r in dataset.records)
    masked += f" · {controls} with control pictures" if controls else ""
    return f"{images}{masked} · {len(dataset.problems)} skipped · {kinds}{more}"


def _label(record: ImageRecord, bucket: tuple[int, int]) -> str:
    role = "" if record.role == "instance" else f" {record.role}"
    weight = "" if record.weight == 1 else f" weight {record.weight:g}"
    return f"{bucket[0]}x{bucket[1]} · {record.repeats}x{role}{weight}"


def _cell(record: ImageRecord, bucket: tuple[int, int]) -> Image.Image:
    """The picture; with control pictures these in a column, an arrow, and the picture."""
    if not record.controls:
        return _thumbnail(record, bucket, CELL)
    cell = Image.new("RGB", (CELL, CELL), PAPER)
    each = min(CONTROL, (CELL - LINE) // len(record.controls[:CONTROLS]))
    for i, control in enumerate(record.controls[:CONTROLS]):
        small = open_image(control.path)
        small.thumbnail((each, each), reducing_gap=3.0)
        cell.paste(small, ((CONTROL - small.width) // 2, i * each + (each - small.height) // 2))
    more = len(record.controls) - CONTROLS
    note = f"+{more} →" if more > 0 else "→"
    writer(13).draw(cell, (CONTROL - LINE, CELL - LINE), note, INK)
    thumb = _thumbnail(record, bucket, CELL - CONTROL - GAP)
    cell.paste(thumb, (CELL - thumb.width, (CELL - thumb.height) // 2))
    return cell


def _thumbnail(record: ImageRecord, bucket: tuple[int, int], side: int) -> Image.Image:
    scale = side / max(bucket)
    size = max(1, round(bucket[0] * scale)), max(1, round(bucket[1] * scale))
    image = _cropped(open_image(record.path), bucket, size)
    if record.mask is None:
        return image
    tinted = Image.blend(image, Image.new("RGB", size, MASKED_OUT), 0.6)
    return Image.composite(image, tinted, _cropped(open_image(record.mask), bucket, size).convert("L"))


def _cropped(image: Image.Image, bucket: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS, cover_box(image.size, bucket), reducing_gap=3.0)
