"""Soft-edged drawing: shapes are drawn `DETAIL` times larger than the picture and shrunk at the end.

All coordinates and sizes are pixels of the finished picture, x to the right and y down. A colour is
(red, green, blue), 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageOps

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Point = tuple[float, float]

SIZE = 128  # pixels
DETAIL = 3


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    """a at share 0, b at share 1."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def any_colour(random: Random) -> Colour:
    return random.randrange(20, 250), random.randrange(20, 250), random.randrange(20, 250)


def darker(colour: Colour, share: float) -> Colour:
    return mixed(colour, (0, 0, 0), share)


def lighter(colour: Colour, share: float) -> Colour:
    return mixed(colour, (255, 255, 255), share)


@lru_cache
def _ball() -> Image.Image:
    """Light that falls from the upper left on a ball: 255 where it is brightest."""
    wide = ImageOps.invert(Image.radial_gradient("L"))
    return wide.crop((64, 64, 256, 256)).resize((96, 96))


@lru_cache
def _slope() -> Image.Image:
    return Image.linear_gradient("L")


class Canvas:
    """A picture [SIZE, SIZE] in progress. A transparent one is a layer for another."""

    def __init__(self, transparent: bool = False) -> None:
        side = SIZE * DETAIL
        self.image = Image.new("RGBA", (side, side), (0, 0, 0, 0 if transparent else 255))
        self.draw = ImageDraw.Draw(self.image)

    def slope(self, top: float, bottom: float, above: Colour, below: Colour) -> None:
        """A band over the whole width whose colour runs from `above` to `below`."""
        y0, y1 = round(top * DETAIL), round(bottom * DETAIL)
        colours = ImageOps.colorize(_slope().resize((1, y1 - y0)), above, below)
        self.image.paste(colours.resize((SIZE * DETAIL, y1 - y0)), (0, y0))

    def ellipse(self, box: Box, colour: Colour) -> None:
        self.draw.ellipse(_scaled(box), fill=colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        self.ellipse(around(centre, radius, radius), colour)

    def rectangle(self, box: Box, colour: Colour, radius: float = 0) -> None:
        self.draw.rounded_rectangle(_scaled(box), radius * DETAIL, fill=colour)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.draw.polygon([(x * DETAIL, y * DETAIL) for x, y in points], fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """A line with round ends and corners."""
        scaled = [(x * DETAIL, y * DETAIL) for x, y in points]
        self.draw.line(scaled, fill=colour, width=round(width * DETAIL), joint="curve")
        if width >= 2:
            for point in (points[0], points[-1]):
                self.disc(point, width / 2, colour)

    def arc(self, box: Box, start: float, end: float, colour: Colour, width: float) -> None:
        """Part of an ellipse, from angle to angle in degrees, clockwise from the right."""
        self.draw.arc(_scaled(box), start, end, fill=colour, width=round(width * DETAIL))

    def half(self, box: Box, colour: Colour) -> None:
        """The upper half of an ellipse."""
        self.draw.chord(_scaled(box), 180, 360, fill=colour)

    def solid(
        self, box: Box, colour: Colour, radius: float | None = None, stripe: Colour | None = None
    ) -> None:
        """A rounded body in the light, an ellipse where no radius of its corners is given."""
        x0, y0, x1, y1 = (round(v) for v in _scaled(box))
        size = (x1 - x0, y1 - y0)
        mask = Image.new("L", size, 0)
        shape = ImageDraw.Draw(mask)
        if radius is None:
            shape.ellipse((0, 0, size[0] - 1, size[1] - 1), fill=255)
        else:
            shape.rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius * DETAIL, fill=255)
        light = _ball().resize(size)
        self.image.paste(_lit(light, colour), (x0, y0), mask)
        if stripe is not None:
            bands = Image.new("L", size, 0)
            pen = ImageDraw.Draw(bands)
            height = size[1] / 9
            for i in range(1, 9, 2):
                pen.rectangle((0, round(i * height), size[0], round((i + 1) * height) - 1), fill=255)
            self.image.paste(_lit(light, stripe), (x0, y0), ImageChops.darker(mask, bands))

    def glow(self, centre: Point, radius: float, colour: Colour, strength: float) -> None:
        """Light around a point, that fades outwards."""
        side = round(2 * radius * DETAIL)
        x0, y0 = (round((v - radius) * DETAIL) for v in centre)
        self.image.paste(colour, (x0, y0), _fade(strength).resize((side, side)))

    def shadow(self, box: Box, strength: float) -> None:
        """A dark, soft ellipse on the ground."""
        x0, y0, x1, y1 = (round(v) for v in _scaled(box))
        self.image.paste((0, 0, 0), (x0, y0), _fade(strength).resize((x1 - x0, y1 - y0)))

    def put(self, layer: Canvas, anchor: Point, at: Point, scale: float, tilt: float, mirrored: bool) -> None:
        """Lays the layer over, its point `anchor` at `at`, turned by `tilt` degrees about that point."""
        image = ImageOps.mirror(layer.image) if mirrored else layer.image
        x, y = (SIZE - anchor[0] if mirrored else anchor[0]), anchor[1]
        image = image.rotate(tilt, Image.Resampling.BILINEAR, center=(x * DETAIL, y * DETAIL))
        a, c = 1 / scale, (x - at[0] / scale) * DETAIL
        f = (y - at[1] / scale) * DETAIL
        placed = image.transform(
            image.size, Image.Transform.AFFINE, (a, 0, c, 0, a, f), Image.Resampling.BILINEAR
        )
        self.image.alpha_composite(placed)

    def finished(self) -> Image.Image:
        return self.image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)


def around(centre: Point, half_width: float, half_height: float) -> Box:
    x, y = centre
    return x - half_width, y - half_height, x + half_width, y + half_height


def _scaled(box: Box) -> Box:
    x0, y0, x1, y1 = box
    return x0 * DETAIL, y0 * DETAIL, x1 * DETAIL, y1 * DETAIL


def _fade(strength: float) -> Image.Image:
    """255 · strength in the middle, 0 on the circle that touches the sides."""
    return ImageOps.invert(Image.radial_gradient("L")).point(lambda v: max(0, v - 75) * strength * 255 / 180)


def _lit(light: Image.Image, colour: Colour) -> Image.Image:
    return ImageOps.colorize(light, darker(colour, 0.6), lighter(colour, 0.35), colour, midpoint=110)
