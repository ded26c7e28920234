"""What should be looked at in a dataset, though all of it can be trained. Nothing is left out for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ..errors import shortened
from .framing import own_resolution
from .records import Dataset, ImageRecord

NEAR = 4
"""Bits of 64 in which the difference hashes of two pictures that look alike may differ."""
BLURRED = 15.0
"""Variance of the Laplacian below which a picture counts as blurred; see `traits`."""
FLAT = 4.0
"""Contrast below which a picture has nothing that could be sharp, or alike."""
ENLARGED = 1.02
"""Scale from which a picture counts as enlarged: less is the rounding of sizes."""
_BITS = 64
_SHOWN = 5


def remarks(dataset: Dataset) -> list[str]:
    """A sentence for each kind of thing, with the names of pictures."""
    kinds = (_animated, _enlarged, _shown_twice, _alike, _blurred)
    return [told for kind in kinds if (told := kind(dataset.records, dataset.resolution))]


def _animated(records: Sequence[ImageRecord], resolution: int) -> str:
    names = [r.name for r in records if r.animated]
    if not names:
        return ""
    return f"{_count(names, 'file has', 'files have')} several frames; the first is used: {_list(names)}"


def _enlarged(records: Sequence[ImageRecord], resolution: int) -> str:
    scales = (
        (r, max(r.framing.sides(r.size, resolution), default=0) / own_resolution(r.size)) for r in records
    )
    small = [f"{r.name} ({scale:.1f} times)" for r, scale in scales if scale >= ENLARGED]
    if not small:
        return ""
    return (
        f"{_count(small, 'picture is', 'pictures are')} too small for the resolution and enlarged:"
        f" {_list(small)}; Image Framing can train them at their own size, or refuse them"
    )


def _shown_twice(records: Sequence[ImageRecord], resolution: int) -> str:
    first: dict[str, ImageRecord] = {}
    pairs = [
        f"{r.name} is {other.name}" for r in records if (other := first.setdefault(r.digest, r)) is not r
    ]
    return f"{_count(pairs, 'picture is', 'pictures are')} there twice: {_list(pairs)}" if pairs else ""


def _alike(records: Sequence[ImageRecord], resolution: int) -> str:
    pairs = [f"{b.name} like {a.name}" for a, b in near_duplicates(records)]
    if not pairs:
        return ""
    return f"{_count(pairs, 'picture looks', 'pictures look')} like another: {_list(pairs)}; leave out one"


def _blurred(records: Sequence[ImageRecord], resolution: int) -> str:
    names = [
        f"{r.name} ({r.traits.sharpness:.1f})"
        for r in records
        if r.traits and r.traits.contrast >= FLAT and r.traits.sharpness < BLURRED
    ]
    if not names:
        return ""
    many = _count(names, "picture looks", "pictures look")
    return f"{many} blurred (sharpness below {BLURRED:g}): {_list(names)}"


def near_duplicates(records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, ImageRecord]]:
    """(earlier, later) for each picture that looks like an earlier one and is not the same file.

    Two hashes that differ in at most NEAR bits are equal in one of NEAR + 1 bands, so only pictures that
    share a band are compared.
    """
    width = -(-_BITS // (NEAR + 1))
    bands: defaultdict[tuple[int, int], list[ImageRecord]] = defaultdict(list)
    for record in records:
        if record.traits is None or record.traits.contrast < FLAT:
            continue
        look = record.traits.look
        keys = [(n, look >> n * width & ((1 << width) - 1)) for n in range(NEAR + 1)]
        alike = next((other for key in keys for other in bands[key] if _near(other, record)), None)
        if alike is None:
            for key in keys:
                bands[key].append(record)
        elif alike.digest != record.digest:
            yield alike, record


def _near(a: ImageRecord, b: ImageRecord) -> bool:
    assert a.traits is not None
    assert b.traits is not None
    return bin(a.traits.look ^ b.traits.look).count("1") <= NEAR


def _count(items: Sequence[str], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _list(items: Sequence[str]) -> str:
    return shortened(items, _SHOWN)
