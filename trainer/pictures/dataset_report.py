"""A dataset as one picture: how many pictures of each role, and each bucket with some that are in it."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw

from ..data.records import Dataset
from ..data.report import buckets, title
from ..errors import DatasetError
from .contact_sheet import DIM, INK, PAPER, thumbnail
from .drawing import to_tensor, writer

THUMB, GAP, LINE = 112, 8, 18
COLUMNS = 6
LEFT = 190
MAX_BUCKETS = 16
ROLES = {"instance": (90, 160, 255), "class": (240, 170, 60), "validation": (110, 200, 120)}


def dataset_picture(dataset: Dataset) -> torch.Tensor:
    """[1, H, W, 3], float32, 0 to 1."""
    found = buckets(dataset)
    rows = found[:MAX_BUCKETS]
    width = LEFT + COLUMNS * (THUMB + GAP) + GAP
    head = 3 * LINE + 3 * GAP
    height = head + len(rows) * (THUMB + GAP) + (LINE if len(found) > len(rows) else 0) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    text, draw = writer(13), ImageDraw.Draw(sheet)
    text.draw(sheet, (GAP, GAP), text.cut(title(dataset), width - 2 * GAP), INK)
    _roles(sheet, draw, dataset, GAP + LINE + GAP // 2)
    most = max(len(members) for _, members in found)
    for i, ((w, h), members) in enumerate(rows):
        y = head + i * (THUMB + GAP)
        text.draw(sheet, (GAP, y), f"{w}x{h}", INK)
        text.draw(sheet, (GAP, y + LINE), f"{len(members)} views", DIM)
        bar = (LEFT - 3 * GAP) * len(members) / most
        draw.rectangle((GAP, y + 2 * LINE + 4, GAP + max(1, bar), y + 2 * LINE + 14), fill=ROLES["instance"])
        step = max(1, len(members) // COLUMNS)
        for k, (record, view) in enumerate(members[::step][:COLUMNS]):
            try:
                thumb = thumbnail(record, view, THUMB)
            except DatasetError:  # gone since the scan: the text says what was found, training will name it
                continue
            sheet.paste(thumb, (LEFT + k * (THUMB + GAP), y))
    if len(found) > len(rows):
        text.draw(sheet, (GAP, height - LINE - GAP), f"and {len(found) - len(rows)} more sizes", DIM)
    return to_tensor(sheet)


def _roles(sheet: Image.Image, draw: ImageDraw.ImageDraw, dataset: Dataset, y: int) -> None:
    """A bar whose parts are the shows of each role in an epoch, with their names below."""
    shown = {
        role: sum(r.repeats * r.views_at(dataset.resolution) for r in dataset.records if r.role == role)
        for role in ROLES
    }
    total, x, text = max(1, sum(shown.values())), float(GAP), writer(13)
    at = float(GAP)
    for role, n in shown.items():
        if not n:
            continue
        end = x + (sheet.width - 2 * GAP) * n / total
        draw.rectangle((x, y, end, y + LINE // 2), fill=ROLES[role])
        label = f"{role} {n} shown"
        text.draw(sheet, (at, y + LINE // 2 + 3), label, ROLES[role])
        x, at = end, at + text.width(label) + 3 * GAP
