"""What of a picture is shown to the network, how, and at which size.

A picture has a view for each resolution, each random crop, mirrored and not, in its own and in changed
colours. Every view is a sample of its own: an epoch shows each of them `repeats` times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
from PIL import Image, ImageEnhance

from ..rng import stream
from .buckets import bucket_size, whole_size
from .clip import Span
from .framing import Box, Framing
from .images import WHITE, cover_box, on_colour, scaled, to_pixels
from .records import ImageRecord

PLAIN = (1.0, 1.0, 1.0)
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A part of a picture, scaled to a bucket."""

    size: tuple[int, int]
    """(width, height) in pixels, as it is trained."""
    box: Box
    """(left, top, right, bottom) of the part, in the picture's own pixels, before it is mirrored."""
    original: tuple[int, int] = (0, 0)
    """(width, height) of the whole picture."""
    flipped: bool = False
    """Mirrored, left to right."""
    colour: tuple[float, float, float] = PLAIN
    """Factors on brightness, contrast and saturation."""
    background: tuple[int, int, int] = WHITE
    """Under what is transparent."""
    span: Span | None = None
    """The frames, of a clip whose model is known."""

    @property
    def frames(self) -> int:
        return self.span.frames if self.span else 1

    def cut(self, image: Image.Image) -> torch.Tensor:
        """The part of an upright picture or frame in mode RGB or RGBA, [H, W, 3], float32, 0 to 1."""
        return to_pixels(self.picture(image))

    def picture(self, image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
        """As `cut`, as a picture; at another size to be looked at."""
        return self._coloured(self._part(on_colour(image, self.background), size))

    def cut_mask(self, mask: Image.Image, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The part of a mask, [H, W], 0 to 1. In mode RGBA its opacity is the mask."""
        grey = Image.merge("RGB", [mask.getchannel("A")] * 3) if mask.mode == "RGBA" else mask
        return to_pixels(self._part(grey, size)).mean(-1)

    def whole(self, image: Image.Image) -> Image.Image:
        """All of an upright picture, mirrored and coloured as this view is: for what is shown beside it."""
        return self._coloured(self._mirrored(on_colour(image, self.background)))

    @property
    def of_whole(self) -> View:
        """This view, for pictures that `whole` has given."""
        left, top, right, bottom = self.box
        width = self.original[0]
        box = (width - right, top, width - left, bottom) if self.flipped else self.box
        return replace(self, box=box, flipped=False, colour=PLAIN)

    @property
    def top_left(self) -> tuple[int, int]:
        """(left, top) of the part in the picture as it was scaled, and mirrored, for this view."""
        left, top, right, _ = self.box
        scale = self.size[0] / (right - left)
        return round((self.original[0] - right if self.flipped else left) * scale), round(top * scale)

    def _part(self, image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
        part = scaled(image, size or self.size, self.box, reducing_gap=3.0 if size else None)
        return self._mirrored(part)

    def _mirrored(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else image

    def _coloured(self, image: Image.Image) -> Image.Image:
        for enhancer, factor in zip(_ENHANCERS, self.colour, strict=True):
            if factor != 1:
                image = enhancer(image).enhance(factor)
        return image


def views(record: ImageRecord, *, resolution: int, step: int = 1) -> list[View]:
    """The views of a picture in a dataset of this resolution, `record.views_at(resolution)` of them.

    resolution: pixels, where the record's framing names none. step: what sides must be multiples of for the
    model, beside what the framing asks for.
    """
    framing = record.framing.of_role(record.role)
    shape = whole_size if framing.crop == "none" else bucket_size
    step = math.lcm(framing.step, step)
    spans = (record.clip.spans if record.clip else ()) or (None,)
    found = []
    for side in framing.sides(record.size, resolution):
        size = shape(*record.size, resolution=side, step=step)
        variants = product(_boxes(record, framing, size), (False, True)[: 1 + framing.flip])
        found += [
            View(
                size=size,
                box=box,
                original=record.size,
                flipped=flipped,
                colour=colour,
                background=framing.background,
                span=span,
            )
            for i, (box, flipped) in enumerate(variants)
            for colour in (PLAIN, *_colours(record, framing, i))
            for span in spans
        ]
    return found


def _boxes(record: ImageRecord, framing: Framing, size: tuple[int, int]) -> list[Box]:
    if framing.crop == "random":
        g = stream(framing.seed, f"crop {record.digest}")
        # One crop from each of equal shares of the way, so that a few do not come to lie on each other.
        shares = (torch.arange(framing.crops) + torch.rand(framing.crops, generator=g)) / framing.crops
        return [cover_box(record.size, size, (u, u)) for u in shares.tolist()]
    if framing.crop == "focus" and record.focus:
        return [cover_box(record.size, size, _towards(record.size, size, record.focus))]
    return [cover_box(record.size, size)]


def _towards(size: tuple[int, int], target: tuple[int, int], focus: Box) -> tuple[float, float]:
    """The place at which the middle of `focus` is nearest to the middle of the crop."""
    left, top, right, bottom = cover_box(size, target, (0.0, 0.0))
    room = size[0] - right, size[1] - bottom
    wanted = (focus[0] + focus[2] - right) / 2, (focus[1] + focus[3] - bottom) / 2
    x, y = (min(1.0, max(0.0, w / r)) if r > 0 else 0.5 for w, r in zip(wanted, room, strict=True))
    return x, y


def _colours(record: ImageRecord, framing: Framing, variant: int) -> list[tuple[float, float, float]]:
    """Factors for the views with changed colours of one crop."""
    if not framing.jitter:
        return []
    g = stream(framing.seed, f"colour {record.digest}", variant)
    drawn = 1 + framing.jitter * (2 * torch.rand(framing.jitters, 3, generator=g) - 1)
    return [(b, c, s) for b, c, s in drawn.tolist()]
