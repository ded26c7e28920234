"""Colours and a font for the pictures that we draw."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

INK = "#1f2430"
PAPER = "white"

_CJK_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "simhei.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
)


@lru_cache(maxsize=8)
def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font that can write Chinese where the system has one, otherwise Pillow's own."""
    for name in _CJK_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def labelled_grid(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """A titled column for each title; each row has a caption below it and a picture for each column.

    All pictures have the size of the first.
    """
    cell_w, cell_h = rows[0][1][0].size
    gap, head, foot = 8, 34, 46
    font = load_font(18 if cell_w >= 256 else 13)
    small = load_font(14 if cell_w >= 256 else 11)
    width = gap + len(titles) * (cell_w + gap)
    sheet = Image.new("RGB", (width, head + len(rows) * (cell_h + foot) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        x = gap + column * (cell_w + gap)
        draw.text((x + cell_w / 2, head / 2), title, fill=INK, font=font, anchor="mm")
    per_line = max(12, int(width / small.getlength("n")))
    for r, (caption, images) in enumerate(rows):
        y = head + r * (cell_h + foot)
        for column, image in enumerate(images):
            sheet.paste(image, (gap + column * (cell_w + gap), y))
        text = textwrap.fill(textwrap.shorten(caption, 2 * per_line, placeholder=" …"), per_line)
        draw.multiline_text((gap, y + cell_h + 4), text, fill=INK, font=small)
    return sheet
