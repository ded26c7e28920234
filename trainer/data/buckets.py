"""Which size a picture is trained at: a few shapes of nearly equal area, so that batches can be stacked.

With unit u = `step` and budget n = resolution² / u², the shapes are, in units:

    (a, ⌊n/a⌋) and (⌊n/a⌋, a) for a = 1, 2, …, and the square (⌊√n⌋, ⌊√n⌋),

all with 1/max_aspect <= width/height <= max_aspect. A picture of W x H gets the shape that minimises
|ln(w/h) - ln(W/H)|; between equals the larger area wins, then the wider one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

MAX_ASPECT = 4.0
MAX_WHOLE_ASPECT = 16.0


@lru_cache(maxsize=64)
def bucket_shapes(
    resolution: int, step: int = 64, max_aspect: float = MAX_ASPECT
) -> tuple[tuple[int, int], ...]:
    """All (width, height) in pixels, by aspect ratio from tall to wide.

    Only shapes that fill the budget are offered: with every multiple allowed, a 5:4 picture at 512 would
    match 320x256 exactly and lose two thirds of its pixels; here it gets 576x448.
    """
    if resolution < 1 or step < 1 or max_aspect < 1:
        raise ValueError(f"resolution {resolution}, step {step}, max_aspect {max_aspect}: at least 1 each")
    n = max(1, resolution * resolution // (step * step))
    shapes = {(math.isqrt(n), math.isqrt(n))}
    for a in range(1, n + 1):
        if a > max_aspect * (n // a):
            break
        shapes |= {(a, n // a), (n // a, a)}
    allowed = [(w, h) for w, h in shapes if max(w, h) <= max_aspect * min(w, h)]
    return tuple((w * step, h * step) for w, h in sorted(allowed, key=lambda s: (s[0] / s[1], s)))


def bucket_size(
    width: int, height: int, *, resolution: int, step: int = 64, max_aspect: float = MAX_ASPECT
) -> tuple[int, int]:
    """(width, height) in pixels to train a picture of `width` x `height` at.

    Both are multiples of `step` and their product is at most resolution², but never less than one step each.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels has no bucket")
    wanted = math.log(width / height)

    def rank(shape: tuple[int, int]) -> tuple[float, int, int]:
        w, h = shape
        # Rounded, so that the last bit of a logarithm does not decide between mirror images.
        return round(abs(math.log(w / h) - wanted), 9), -w * h, -w

    return min(bucket_shapes(resolution, step, max_aspect), key=rank)


def whole_size(width: int, height: int, *, resolution: int, step: int = 64) -> tuple[int, int]:
    """(width, height) in pixels to train a picture of `width` x `height` at without cropping it.

    Both are multiples of `step`, and their product is at most resolution² and at least three quarters of it
    where steps allow. Among these the sides nearest to the picture's aspect ratio win, then the larger area;
    what still sticks out is less than half a step. Pictures longer than MAX_WHOLE_ASPECT are treated as if
    they had that aspect ratio.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels has no bucket")
    aspect = min(max(width, height) / min(width, height), MAX_WHOLE_ASPECT)  # of the long side to the short
    budget = max(1, resolution * resolution // (step * step))
    most = math.sqrt(budget / aspect)

    def rank(shape: tuple[int, int]) -> tuple[float, int]:
        short, long = shape
        return round(abs(math.log(long / short / aspect)), 9), -short * long

    sides = range(max(1, math.floor(most * math.sqrt(0.75))), max(1, math.floor(most)) + 1)
    short, long = min(((a, max(a, min(round(a * aspect), budget // a))) for a in sides), key=rank)
    return (long * step, short * step) if width >= height else (short * step, long * step)


def group_by_bucket(
    sizes: Iterable[tuple[int, int]], *, resolution: int, step: int = 64, max_aspect: float = MAX_ASPECT
) -> dict[tuple[int, int], list[int]]:
    """Bucket (width, height) -> positions in `sizes`, both in order of appearance."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (width, height) in enumerate(sizes):
        shape = bucket_size(width, height, resolution=resolution, step=step, max_aspect=max_aspect)
        groups.setdefault(shape, []).append(i)
    return groups
