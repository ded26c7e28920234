"""What of a picture is shown to the network, and at which size: one view for each size that is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from .buckets import bucket_size
from .images import cover_box, fit
from .records import ImageRecord, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A part of a picture, scaled to a bucket."""

    size: tuple[int, int]
    """(width, height) in pixels, as it is trained."""
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) of the part, in the picture's own pixels."""
    span: Span | None = None
    """The frames, of a clip whose model is known."""

    @property
    def frames(self) -> int:
        return self.span.frames if self.span else 1

    def cut(self, image: Image.Image) -> torch.Tensor:
        """The part of an upright picture or frame, [H, W, 3], float32, 0 to 1."""
        return fit(image, self.size)


def views(record: ImageRecord, *, resolution: int, step: int = 64) -> list[View]:
    """The views of a picture in a dataset of this resolution.

    resolution: pixels, where the record's framing names none. step: what sides are multiples of.
    """
    sizes = [
        bucket_size(*record.size, resolution=r, step=step)
        for r in record.framing.resolutions or (resolution,)
    ]
    spans = (record.clip.spans if record.clip else ()) or (None,)
    return [
        View(size=size, box=cover_box(record.size, size), span=span)
        for size in dict.fromkeys(sizes)
        for span in spans
    ]
