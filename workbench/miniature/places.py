"""The places that a figurine can stand in. Each is a function that paints the whole canvas."""

from __future__ import annotations

from random import Random

from .canvas import SIZE, Canvas, Colour, around, darker, lighter, mixed


def beach(canvas: Canvas, random: Random) -> None:
    horizon = random.uniform(48, 60)
    shore = horizon + random.uniform(14, 22)
    canvas.slope(0, horizon, (104, 188, 244), (206, 236, 250))
    sun = (random.uniform(12, 116), random.uniform(10, 24))
    canvas.glow(sun, 20, (255, 250, 200), 0.8)
    canvas.disc(sun, random.uniform(6, 9), (255, 236, 120))
    for _ in range(random.randint(0, 2)):
        _cloud(canvas, random, random.uniform(10, 34))
    canvas.slope(horizon, shore + 4, (30, 132, 176), (92, 204, 206))
    for _ in range(5):
        x, y = random.uniform(0, 110), random.uniform(horizon + 3, shore - 2)
        canvas.line([(x, y), (x + random.uniform(8, 18), y)], (190, 236, 236), 0.8)
    canvas.slope(shore, SIZE, (250, 226, 160), (226, 184, 108))
    canvas.line([(0, shore), (40, shore + 1.5), (80, shore - 1), (128, shore)], (250, 250, 240), 2.4)
    if random.random() < 0.55:
        _palm(canvas, random)
    if random.random() < 0.4:
        _parasol(canvas, random)
    for _ in range(random.randint(2, 6)):
        spot = (random.uniform(4, 124), random.uniform(shore + 8, 125))
        canvas.ellipse(
            around(spot, random.uniform(1, 2.2), 1), random.choice([(244, 150, 130), (250, 244, 230)])
        )


def _cloud(canvas: Canvas, random: Random, y: float) -> None:
    x = random.uniform(5, 115)
    for _ in range(5):
        part = (x + random.uniform(-11, 11), y + random.uniform(-2, 2))
        canvas.ellipse(around(part, random.uniform(5, 9), random.uniform(3, 5)), (250, 252, 255))


def _palm(canvas: Canvas, random: Random) -> None:
    side = random.choice([-1, 1])
    x = 64 + side * random.uniform(44, 56)
    top = (x - side * random.uniform(3, 9), random.uniform(22, 36))
    canvas.line([(x, 92), ((x + top[0]) / 2 + side * 2, 60), top], (134, 92, 52), 4.5)
    for reach, drop in ((-22, 8), (-17, -5), (-7, 15), (7, 15), (17, -5), (22, 8), (2, -11)):
        tip = (top[0] + reach, top[1] + drop)
        middle = (top[0] + reach * 0.55, top[1] + drop * 0.5 - 6)
        canvas.polygon([top, middle, tip, (middle[0], middle[1] + 5)], (36, 140, 62))


def _parasol(canvas: Canvas, random: Random) -> None:
    x, y = random.choice([random.uniform(12, 28), random.uniform(100, 116)]), random.uniform(60, 70)
    canvas.line([(x, y), (x, y + 30)], (240, 236, 226), 2)
    canvas.half(around((x, y + 4), 17, 14), (228, 66, 72))
    canvas.half(around((x, y + 4), 8, 14), (252, 246, 236))


def forest(canvas: Canvas, random: Random) -> None:
    canvas.slope(0, 90, (150, 196, 120), (76, 132, 66))
    for _ in range(7):
        _leafy_tree(canvas, random, random.uniform(0, 128), random.uniform(66, 76), (58, 112, 58), 0.7)
    ground = random.uniform(74, 82)
    canvas.slope(ground, SIZE, (74, 110, 44), (46, 72, 30))
    places = [random.uniform(2, 24), random.uniform(104, 126), random.uniform(24, 104)]
    for x in places[: random.randint(2, 3)]:
        _leafy_tree(canvas, random, x, ground + random.uniform(3, 9), (32, 92, 40), 1.15)
    for _ in range(random.randint(8, 14)):
        x, y = random.uniform(2, 126), random.uniform(ground + 8, 126)
        canvas.polygon([(x - 3, y), (x - 1, y - 7), (x, y - 2), (x + 2, y - 8), (x + 3, y)], (96, 146, 56))
    for _ in range(random.randint(0, 4)):
        x, y = random.choice([random.uniform(4, 34), random.uniform(94, 124)]), random.uniform(100, 122)
        canvas.rectangle((x - 1.5, y - 4, x + 1.5, y + 2), (240, 228, 206))
        canvas.half(around((x, y - 3), 4.5, 4.5), (206, 54, 44))


def _leafy_tree(canvas: Canvas, random: Random, x: float, foot: float, green: Colour, size: float) -> None:
    width = 6 * size
    top = foot - 40 * size
    canvas.rectangle((x - width / 2, top, x + width / 2, foot), darker((122, 82, 50), 0.15))
    for _ in range(6):
        part = (x + random.uniform(-13, 13) * size, top + random.uniform(-15, 9) * size)
        shade = mixed(green, (120, 180, 70), random.uniform(0, 0.35))
        canvas.disc(part, random.uniform(8, 13) * size, shade)


def snow(canvas: Canvas, random: Random) -> None:
    canvas.slope(0, 84, (160, 186, 214), (226, 236, 246))
    for x in (random.uniform(-10, 40), random.uniform(50, 80), random.uniform(90, 140)):
        peak = random.uniform(24, 46)
        canvas.polygon([(x - 46, 84), (x, peak), (x + 46, 84)], (132, 156, 190))
        cap = [(x - 14, peak + 14.5), (x, peak), (x + 14, peak + 14.5), (x, peak + 10)]
        canvas.polygon(cap, (250, 252, 255))
    ground = random.uniform(72, 80)
    canvas.slope(ground, SIZE, (236, 242, 250), (206, 220, 238))
    canvas.ellipse(
        (random.uniform(-50, -10), ground - 8, random.uniform(50, 90), ground + 24), (240, 246, 252)
    )
    canvas.ellipse(
        (random.uniform(60, 80), ground - 6, random.uniform(140, 170), ground + 22), (236, 243, 251)
    )
    for x in (random.uniform(4, 26), random.uniform(102, 124)):
        if random.random() < 0.8:
            _fir(canvas, x, ground + random.uniform(4, 14), random.uniform(0.8, 1.2))
    if random.random() < 0.35:
        x, y = random.choice([random.uniform(12, 24), random.uniform(104, 116)]), random.uniform(104, 116)
        canvas.solid(around((x, y), 9, 8), (236, 242, 250))
        canvas.solid(around((x, y - 12), 6, 6), (240, 245, 252))
    for _ in range(random.randint(25, 50)):
        canvas.disc(
            (random.uniform(0, 128), random.uniform(0, 128)), random.uniform(0.6, 1.5), (255, 255, 255)
        )


def _fir(canvas: Canvas, x: float, foot: float, size: float) -> None:
    canvas.rectangle((x - 2 * size, foot - 8 * size, x + 2 * size, foot), (104, 76, 54))
    for i in range(3):
        wide, base = (15 - 3.5 * i) * size, foot - (6 + 11 * i) * size
        peak = (x, base - 17 * size)
        canvas.polygon([(x - wide, base), peak, (x + wide, base)], (52, 104, 92))
        cap, edge = wide * 0.5, base - 8.5 * size
        canvas.polygon([(x - cap, edge), peak, (x + cap, edge)], (246, 250, 254))


def night(canvas: Canvas, random: Random) -> None:
    ground = random.uniform(74, 84)
    canvas.slope(0, ground + 12, (10, 12, 44), (52, 46, 104))
    for _ in range(random.randint(20, 40)):
        spot = (random.uniform(0, 128), random.uniform(0, ground - 8))
        canvas.disc(spot, random.uniform(0.5, 1.2), random.choice([(255, 255, 255), (255, 244, 190)]))
    moon = (random.choice([random.uniform(14, 36), random.uniform(92, 114)]), random.uniform(14, 30))
    radius = random.uniform(8, 12)
    canvas.glow(moon, radius * 2.4, (150, 150, 210), 0.7)
    canvas.disc(moon, radius, (246, 240, 206))
    if random.random() < 0.5:
        canvas.disc((moon[0] + radius * 0.5, moon[1] - 2), radius * 0.85, (38, 36, 82))
    for x in (random.uniform(-20, 30), random.uniform(80, 130), random.uniform(30, 90)):
        canvas.ellipse(around((x, ground + 18), random.uniform(40, 60), random.uniform(22, 34)), (24, 28, 62))
    canvas.slope(ground + 8, SIZE, (34, 42, 72), (16, 20, 42))
    if random.random() < 0.5:
        x, y = random.choice([random.uniform(10, 26), random.uniform(102, 118)]), ground + 8
        canvas.rectangle((x - 10, y - 10, x + 10, y + 4), (40, 34, 58))
        canvas.polygon([(x - 13, y - 9), (x, y - 20), (x + 13, y - 9)], (62, 40, 66))
        canvas.rectangle((x - 4, y - 6, x + 4, y), (255, 214, 110))
    for _ in range(random.randint(0, 6)):
        spot = (random.uniform(4, 124), random.uniform(ground, 120))
        canvas.glow(spot, 3.5, (230, 255, 130), 0.9)


def street(canvas: Canvas, random: Random) -> None:
    canvas.slope(0, 80, (186, 204, 222), (220, 226, 232))
    kerb = random.uniform(82, 90)
    x = random.uniform(-14, 0)
    while x < SIZE:
        width = random.uniform(26, 42)
        _house(canvas, random, x, x + width, random.uniform(8, 38), kerb - 6)
        x += width
    canvas.rectangle((0, kerb - 6, SIZE, kerb + 3), (178, 176, 174))
    canvas.slope(kerb + 2, SIZE, (104, 106, 112), (78, 80, 86))
    start = random.uniform(-20, 4)
    for i in range(6):
        left = start + i * 28
        canvas.polygon([(left, 117), (left + 14, 117), (left + 13, 121), (left - 1, 121)], (236, 232, 220))
    if random.random() < 0.7:
        x = random.choice([random.uniform(8, 22), random.uniform(106, 120)])
        canvas.line([(x, kerb), (x, 34), (x + (8 if x < 64 else -8), 31)], (54, 60, 66), 2.6)
        canvas.ellipse(around((x + (9 if x < 64 else -9), 33), 5, 3), (255, 240, 170))


def _house(canvas: Canvas, random: Random, left: float, right: float, top: float, foot: float) -> None:
    walls: list[Colour] = [(176, 98, 82), (206, 168, 126), (150, 126, 140), (126, 142, 156), (196, 142, 106)]
    wall = mixed(random.choice(walls), (128, 128, 128), random.uniform(0, 0.25))
    canvas.rectangle((left, top, right, foot), wall)
    canvas.rectangle((left, top, right, top + 3), darker(wall, 0.35))
    columns = max(2, round((right - left) / 12))
    step = (right - left) / columns
    y = top + 8
    while y < foot - 16:
        for i in range(columns):
            x = left + (i + 0.5) * step
            pane = (255, 228, 150) if random.random() < 0.2 else (92, 124, 152)
            canvas.rectangle((x - 3.2, y, x + 3.2, y + 8), lighter(wall, 0.45))
            canvas.rectangle((x - 2.3, y + 1, x + 2.3, y + 7), pane)
        y += 14
    x = (left + right) / 2
    canvas.rectangle((x - 4, foot - 13, x + 4, foot), darker(wall, 0.55))


PLACES = {"beach": beach, "forest": forest, "snow": snow, "night": night, "street": street}
