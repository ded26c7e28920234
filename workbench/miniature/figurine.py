"""A figurine, drawn upright on a layer of its own: feet at `FEET`, about 60 pixels tall."""

from __future__ import annotations

from collections.abc import Callable

from .canvas import DETAIL, Canvas, Colour, Point, around, darker

FEET: Point = (64, 112)

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 44),
    "orange": (242, 134, 30),
    "yellow": (246, 212, 44),
    "green": (48, 160, 64),
    "blue": (44, 92, 214),
    "purple": (136, 60, 180),
    "white": (236, 236, 238),
}
BODIES: dict[str, tuple[float, float, float | None]] = {
    "egg": (21, 27, None),
    "capsule": (18, 28, 18),
    "block": (20.5, 25, 9),
    "ball": (24, 24, None),
}
"""Half width, half height, radius of the corners."""

INK: Colour = (34, 28, 40)


def draw(
    layer: Canvas, colour: Colour, stripe: Colour | None, body: str, face: str, hat: str, held: str
) -> None:
    """`hat` and `held` may be empty. The hand that holds is the one on the right."""
    half_width, half_height, radius = BODIES[body]
    x, foot = FEET
    middle = foot - 4 - half_height
    top = middle - half_height
    limb = darker(colour, 0.22)
    for side in (-1, 1):
        layer.ellipse(around((x + side * 9, foot - 3), 8, 4.5), darker(colour, 0.45))
    shoulder, hand = middle + 2, (x + half_width + 9, middle + 3)
    layer.line([(x - half_width + 4, shoulder), (x - half_width - 5, shoulder + 11)], limb, 6.5)
    if not held:
        layer.line([(x + half_width - 4, shoulder), (x + half_width + 5, shoulder + 11)], limb, 6.5)
    layer.solid((x - half_width, top, x + half_width, foot - 4), colour, radius, stripe)
    FACES[face](layer, (x, top + half_height * 0.72))
    if hat:
        HATS[hat](layer, (x, top), half_width)
    if held:
        OBJECTS[held](layer, hand)
        layer.line([(x + half_width - 4, shoulder), hand], limb, 6.5)


# Faces. `at` is the point between the eyes.


def _eyes(layer: Canvas, at: Point, radius: float = 3.6, pupil: float = 2.0) -> None:
    for side in (-1, 1):
        eye = (at[0] + side * 6.5, at[1])
        layer.disc(eye, radius, (255, 255, 255))
        layer.disc((eye[0], eye[1] + 0.4), pupil, INK)


def _smile(layer: Canvas, at: Point) -> None:
    _eyes(layer, at)
    layer.arc(around((at[0], at[1] + 6), 5.5, 4.5), 15, 165, INK, 1.6)


def _grin(layer: Canvas, at: Point) -> None:
    _eyes(layer, at, 3.8, 2.2)
    mouth = around((at[0], at[1] + 6), 7, 7)
    layer.draw.chord(tuple(DETAIL * v for v in mouth), 0, 180, fill=INK)
    layer.rectangle((at[0] - 5, at[1] + 6, at[0] + 5, at[1] + 8), (255, 255, 255))


def _surprised(layer: Canvas, at: Point) -> None:
    _eyes(layer, at, 4.2, 1.8)
    layer.ellipse(around((at[0], at[1] + 9.5), 2.6, 3.4), INK)


def _sleepy(layer: Canvas, at: Point) -> None:
    _eyes(layer, at, 4.2, 2.2)
    for side in (-1, 1):
        layer.half(around((at[0] + side * 6.5, at[1] + 0.5), 4.6, 5), INK)
    layer.line([(at[0] - 2.5, at[1] + 9), (at[0] + 2.5, at[1] + 9)], INK, 2)


def _moustache(layer: Canvas, at: Point) -> None:
    for side in (-1, 1):
        layer.disc((at[0] + side * 7, at[1]), 5.6, INK)
        layer.disc((at[0] + side * 7, at[1]), 4.2, (250, 250, 240))
        layer.disc((at[0] + side * 7, at[1]), 2.0, INK)
    layer.line([(at[0] - 2, at[1]), (at[0] + 2, at[1])], INK, 1.6)
    for side in (-1, 1):
        points = [(0, 7), (5, 6.5), (10, 8), (5, 11), (0, 10)]
        layer.polygon([(at[0] + side * dx, at[1] + dy) for dx, dy in points], INK)


# Hats. `at` is the top of the body, which the hat covers a little.


def _top_hat(layer: Canvas, at: Point, half_width: float) -> None:
    x, y = at[0], at[1] + 6
    layer.rectangle((x - 11, y - 23, x + 11, y), (40, 38, 48), 1.5)
    layer.rectangle((x - 11, y - 8, x + 11, y - 3), (190, 44, 60))
    layer.ellipse(around((x, y), 18, 3.6), (30, 28, 38))


def _cap(layer: Canvas, at: Point, half_width: float) -> None:
    x, y = at[0], at[1] + 8
    layer.half(around((x, y), half_width * 0.78, 15), (36, 120, 196))
    layer.ellipse((x - 2, y - 3.5, x + half_width + 7, y + 3), (22, 82, 146))
    layer.disc((x, y - 15), 1.8, (240, 240, 240))


def _crown(layer: Canvas, at: Point, half_width: float) -> None:
    x, y = at[0], at[1] + 6
    points = [(-14, 0), (-15, -16), (-7.5, -8), (0, -19), (7.5, -8), (15, -16), (14, 0)]
    layer.polygon([(x + dx, y + dy) for dx, dy in points], (250, 204, 50))
    layer.rectangle((x - 14, y - 4, x + 14, y), (214, 156, 24))
    for dx, dy in ((-15, -16), (0, -19), (15, -16)):
        layer.disc((x + dx, y + dy), 2.2, (226, 52, 80))


def _party_hat(layer: Canvas, at: Point, half_width: float) -> None:
    x, y = at[0], at[1] + 6
    layer.polygon([(x - 12, y), (x, y - 29), (x + 12, y)], (240, 90, 160))
    for dx, dy in ((-5, -5), (5, -7), (0, -15)):
        layer.disc((x + dx, y + dy), 2.1, (255, 236, 120))
    layer.disc((x, y - 29), 3.6, (255, 255, 255))


def _beanie(layer: Canvas, at: Point, half_width: float) -> None:
    x, y = at[0], at[1] + 9
    layer.half(around((x, y), half_width * 0.8, 19), (36, 150, 130))
    layer.rectangle((x - half_width * 0.86, y - 4, x + half_width * 0.86, y + 2), (224, 240, 230), 3)
    layer.disc((x, y - 19), 4.4, (224, 240, 230))


def _wizard_hat(layer: Canvas, at: Point, half_width: float) -> None:
    x, y = at[0], at[1] + 6
    points = [(-14, 0), (-5, -20), (9, -31), (6, -19), (14, 0)]
    layer.polygon([(x + dx, y + dy) for dx, dy in points], (92, 46, 150))
    layer.ellipse(around((x, y), 24, 4.4), (74, 34, 126))
    layer.disc((x - 4, y - 7), 2.4, (255, 226, 90))
    layer.disc((x + 4, y - 14), 2.0, (255, 226, 90))


# What the hand holds, at the point of the hand.


def _cup(layer: Canvas, at: Point) -> None:
    x, y = at[0] + 3, at[1] - 5
    layer.draw.ellipse(tuple(DETAIL * v for v in around((x + 8, y), 5, 5)), outline=(240, 242, 246), width=7)
    layer.rectangle((x - 8, y - 8, x + 8, y + 9), (246, 248, 252), 2.5)
    layer.rectangle((x - 8, y - 1, x + 8, y + 3), (60, 120, 200))
    layer.ellipse(around((x, y - 8), 8, 2.4), (104, 66, 40))


def _balloon(layer: Canvas, at: Point) -> None:
    x, y = at[0] + 3, at[1] - 42
    layer.line([at, (x, y + 13)], (70, 70, 80), 0.9)
    layer.solid(around((x, y), 12.5, 15), (246, 84, 132))
    layer.polygon([(x - 2.5, y + 18), (x, y + 13), (x + 2.5, y + 18)], (200, 50, 100))


def _flower(layer: Canvas, at: Point) -> None:
    x, y = at[0] + 3, at[1] - 20
    layer.line([(at[0], at[1] + 6), (x, y)], (40, 130, 50), 2.4)
    layer.ellipse(around((x + 4, y + 14), 4.5, 2.2), (60, 160, 60))
    for dx, dy in ((0, -7), (6.6, -2), (4, 6), (-4, 6), (-6.6, -2)):
        layer.disc((x + dx, y + dy), 4.8, (250, 160, 200))
    layer.disc((x, y), 4.2, (250, 200, 40))


def _flag(layer: Canvas, at: Point) -> None:
    x, y = at[0], at[1]
    layer.line([(x, y + 16), (x, y - 40)], (120, 84, 50), 2.4)
    points = [(0, -39), (12, -36), (23, -39), (23, -22), (12, -19), (0, -22)]
    layer.polygon([(x + dx, y + dy) for dx, dy in points], (0, 170, 178))
    layer.disc((x + 11.5, y - 29), 4, (250, 250, 244))


def _book(layer: Canvas, at: Point) -> None:
    x, y = at[0] + 4, at[1] - 5
    layer.rectangle((x - 11, y - 12, x + 10, y + 12), (122, 66, 36), 1.5)
    layer.rectangle((x - 8, y - 12, x + 11, y + 9.5), (250, 246, 230), 1)
    layer.rectangle((x - 11, y - 13, x + 8, y + 10), (160, 88, 44), 1.5)
    layer.rectangle((x - 6, y - 8, x + 4, y - 4), (246, 214, 130))


def _lantern(layer: Canvas, at: Point) -> None:
    x, y = at[0] + 3, at[1] + 10
    layer.arc(around((x, y - 9), 5, 6), 180, 360, (60, 54, 50), 1.8)
    layer.rectangle((x - 8, y - 9, x + 8, y + 11), (62, 56, 52), 2)
    layer.rectangle((x - 5.5, y - 6, x + 5.5, y + 8), (255, 206, 70), 1)
    layer.ellipse(around((x, y + 1.5), 2.6, 5), (255, 250, 220))


FACES: dict[str, Callable[[Canvas, Point], None]] = {
    "smile": _smile, "grin": _grin, "surprised": _surprised, "sleepy": _sleepy, "moustache": _moustache,
}  # fmt: skip
HATS: dict[str, Callable[[Canvas, Point, float], None]] = {
    "top hat": _top_hat, "cap": _cap, "crown": _crown, "party hat": _party_hat, "beanie": _beanie,
    "wizard hat": _wizard_hat,
}  # fmt: skip
OBJECTS: dict[str, Callable[[Canvas, Point], None]] = {
    "cup": _cup, "balloon": _balloon, "flower": _flower, "flag": _flag, "book": _book, "lantern": _lantern,
}  # fmt: skip
