"""Pictures in rows and labelled columns."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .drawing import PAPER, writer

GAP, HEAD = 8, 34
CAPTION_LINES = 2


def labelled_grid(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """A titled column for each title; each row has a caption below it and a picture for each column.

    All pictures have the size of the first.
    """
    cell_w, cell_h = rows[0][1][0].size
    head, small = (writer(18), writer(14)) if cell_w >= 256 else (writer(13), writer(11))
    line = round(1.35 * small.size)
    foot = CAPTION_LINES * line + 8
    width = GAP + len(titles) * (cell_w + GAP)
    sheet = Image.new("RGB", (width, HEAD + len(rows) * (cell_h + foot) + GAP), PAPER)
    for column, title in enumerate(titles):
        x = GAP + column * (cell_w + GAP)
        head.draw(sheet, (x + cell_w / 2, HEAD / 2), title, anchor="mm")
    for r, (caption, images) in enumerate(rows):
        y = HEAD + r * (cell_h + foot)
        for column, image in enumerate(images):
            sheet.paste(image, (GAP + column * (cell_w + GAP), y))
        for n, text in enumerate(small.wrapped(caption, width - 2 * GAP, CAPTION_LINES)):
            small.draw(sheet, (GAP, y + cell_h + 4 + n * line), text)
    return sheet
