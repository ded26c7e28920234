"""One picture that shows what will be trained: each picture as cropped, its size, repeats and caption."""

from __future__ import annotations

import math

import torch
from PIL import Image

from ..data.buckets import bucket_size, group_by_bucket
from ..data.images import cover_box, open_image
from ..data.pixels import cover
from ..data.records import Dataset, ImageRecord
from .drawing import to_tensor, writer

CELL = 192
LINE = 18
GAP = 8
COLUMNS = 6
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
        thumb = _thumbnail(record, bucket)
        sheet.paste(thumb, (x + (CELL - thumb.width) // 2, y + (CELL - thumb.height) // 2))
        write((x, y + CELL), _label(record, bucket), CELL, DIM)
        write((x, y + CELL + LINE), record.caption or "(no caption)", CELL, INK)
    return to_tensor(sheet)


def title(dataset: Dataset, shown: int | None = None) -> str:
    """For example "12 images · 3 clips · 2 masked · 1 skipped · 3 buckets"."""
    buckets = group_by_bucket((r.size for r in dataset.records), resolution=dataset.resolution)
    counts = ((len(dataset), "image"), (len(buckets), "bucket"))
    images, kinds = (f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts)
    more = f" · first {shown} shown" if shown is not None and shown < len(dataset) else ""
    clips = sum(r.clip is not None for r in dataset.records)
    moving = f" · {clips} clip{'' if clips == 1 else 's'}" if clips else ""
    masks = sum(r.mask is not None for r in dataset.records)
    masked = f" · {masks} masked" if masks else ""
    return f"{images}{moving}{masked} · {len(dataset.problems)} skipped · {kinds}{more}"


def _label(record: ImageRecord, bucket: tuple[int, int]) -> str:
    role = "" if record.role == "instance" else f" {record.role}"
    weight = "" if record.weight == 1 else f" weight {record.weight:g}"
    clip = record.clip
    rate = f" {clip.fps:.4g} fps" if clip and clip.fps else ""
    length = f" · {clip.frames} frames{rate}" if clip else ""
    return f"{bucket[0]}x{bucket[1]} · {record.repeats}x{role}{weight}{length}"


def _thumbnail(record: ImageRecord, bucket: tuple[int, int]) -> Image.Image:
    scale = CELL / max(bucket)
    size = max(1, round(bucket[0] * scale)), max(1, round(bucket[1] * scale))
    image = _cropped(cover(record), bucket, size)
    if record.mask is None:
        return image
    tinted = Image.blend(image, Image.new("RGB", size, MASKED_OUT), 0.6)
    return Image.composite(image, tinted, _cropped(open_image(record.mask), bucket, size).convert("L"))


def _cropped(image: Image.Image, bucket: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS, cover_box(image.size, bucket), reducing_gap=3.0)
