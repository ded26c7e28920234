"""Colours, and text in a font that can write it."""

from __future__ import annotations

import textwrap
import unicodedata
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK = "#1f2430"
PAPER = "white"

# Found by name in the system's font folders: those that can write Chinese first.
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "simhei.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Light.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "segoeui.ttf",
    "Arial.ttf",
    "Helvetica.ttc",
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
)
_ENLARGED = 4
_PLAIN = str.maketrans({"×": "x", "–": "-", "—": "-", "…": "...", "‘": "'", "’": "'", "“": '"', "”": '"'})


class Writer:
    """Writes lines of one size.

    Pillow's own font, which is there always, lacks many signs and sets words without gaps in small sizes: it
    is drawn larger and shrunk, and signs that it lacks are replaced by the nearest that it has.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        found = _system_font(size)
        self._scale = 1 if found else _ENLARGED
        self._font: Any = found or ImageFont.load_default(size * _ENLARGED)
        if not isinstance(self._font, ImageFont.FreeTypeFont):  # Pillow without FreeType: one size, Latin-1
            self._scale = 1
        self._system = found is not None

    def width(self, text: str) -> float:
        """Pixels."""
        return self._font.getlength(self._writable(text)) / self._scale

    def draw(
        self, image: Image.Image, at: tuple[float, float], text: str, fill: Any = INK, anchor: str = "la"
    ) -> None:
        """One line; `at` is what Pillow calls the anchor: "la" left and top, "mm" the middle."""
        text = self._writable(text)
        if self._scale == 1:
            known = isinstance(self._font, ImageFont.FreeTypeFont)
            ImageDraw.Draw(image).text(at, text, fill=fill, font=self._font, anchor=anchor if known else None)
            return
        scale, pad = self._scale, 2
        width, height = round(self.width(text)) + 2 * pad, 2 * self.size
        mask = Image.new("L", (width * scale, height * scale))
        left = pad if anchor[0] == "l" else width / 2
        top = 0.0 if anchor[1] == "a" else height / 2
        ImageDraw.Draw(mask).text((left * scale, top * scale), text, fill=255, font=self._font, anchor=anchor)
        small = mask.resize((width, height), Image.Resampling.BOX)
        image.paste(fill, (round(at[0] - left), round(at[1] - top)), small)

    def cut(self, text: str, width: float) -> str:
        """One line without signs that cannot be shown, ending in an ellipsis where `width` pixels end."""
        text = line = " ".join("".join(c if c.isprintable() else " " for c in text[:500]).split())
        while line and self.width(line) > width:
            text = text[:-1]
            line = text + "..."
        return line

    def wrapped(self, text: str, width: float, lines: int) -> list[str]:
        """Up to `lines` lines of `width` pixels."""
        per_line = max(12, int(width / self.width("n")))
        short = textwrap.shorten(text, lines * per_line, placeholder=" …")
        return [self.cut(line, width) for line in textwrap.wrap(short, per_line)[:lines]]

    def _writable(self, text: str) -> str:
        if self._system:
            return text
        if not isinstance(self._font, ImageFont.FreeTypeFont):
            return text.translate(_PLAIN).encode("latin-1", "replace").decode("latin-1")
        return "".join(map(self._nearest, text))

    def _nearest(self, sign: str) -> str:
        folded = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
        options = (sign, sign.translate(_PLAIN), folded, "?")
        return next(option for option in options if option and all(map(self._has, option)))

    def _has(self, sign: str) -> bool:
        return sign.isspace() or _bitmap(self._font, sign) != _bitmap(self._font, "\uffff")


@lru_cache(maxsize=16)
def writer(size: int) -> Writer:
    return Writer(size)


def _system_font(size: int) -> ImageFont.FreeTypeFont | None:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


@lru_cache(maxsize=4096)
def _bitmap(font: ImageFont.FreeTypeFont, sign: str) -> bytes:
    picture = Image.new("L", (2 * int(font.size), 2 * int(font.size)))
    ImageDraw.Draw(picture).text((0, 0), sign, fill=255, font=font)
    return picture.tobytes()


def to_pil(image: Tensor) -> Image.Image:
    """[1, H, W, 3] in 0..1"""
    array = (image[0].float().cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(array)


def to_tensor(image: Image.Image) -> Tensor:
    """[1, H, W, 3] in 0..1, as ComfyUI's IMAGE"""
    return torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255).unsqueeze(0)
