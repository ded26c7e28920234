"""From a file to a record, and from a record to what the VAE encodes."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import DatasetError
from ..files import sha256
from .clip import Clip, ClipOptions
from .clips import GIF, frames_at, inspect_clip, is_clip
from .images import WHITE, Examined, examine, open_image
from .records import ImageRecord
from .views import View


def inspect(path: Path, options: ClipOptions) -> tuple[Examined, Clip | None]:
    """What a picture or clip is; a GIF is a picture unless the options say otherwise. Raises DatasetError."""
    if not is_clip(path) and not (options.gifs and path.suffix.lower() == GIF):
        return examine(path), None
    found = inspect_clip(path)
    seen = Examined(size=found.size, digest=found.digest, traits=None, transparent=False, animated=False)
    return seen, Clip(frames=found.frames, fps=found.fps, options=options)


def opened(record: ImageRecord) -> tuple[Image.Image, Image.Image | None]:
    """The picture, or the first frame of the clip, and the mask, decoded, as `View.cut` and `View.cut_mask`
    take them. Raises DatasetError."""
    if record.clip is not None:
        image = next(frames_at(record.path, [0.0], record.clip.fps or 1.0))
    else:
        image = open_image(record.path, alpha=True)
    if record.mask is None:
        return image, None
    if record.mask != record.path:
        return image, open_image(record.mask)
    return image, image if image.mode == "RGBA" else Image.new("RGB", image.size, WHITE)


def first_frame(record: ImageRecord) -> Image.Image:
    """Of a clip, the first frame that is trained; the picture where it is none. Raises DatasetError."""
    clip = record.clip
    if clip is None or not clip.spans:
        return opened(record)[0]
    span = clip.spans[0]
    return next(frames_at(record.path, [span.start], clip.fps or span.fps))


def pixels(record: ImageRecord, view: View) -> tuple[Tensor, Tensor | None]:
    """What is trained of the record, [H, W, 3] of a picture and [T, H, W, 3] of a clip, and its mask [H, W];
    float32, 0 to 1.

    Of a clip no more than one decoded frame is held beside the result. Raises DatasetError.
    """
    if view.span is None:
        image, hidden = opened(record)
        shown = view.cut(image)
    else:
        shown, hidden = _frames(record, view), open_image(record.mask) if record.mask else None
    mask = None if hidden is None else view.cut_mask(hidden)
    now = inspect_clip(record.path).digest if record.clip else sha256(record.path)
    if now != record.digest:
        _changed(record.path)
    if record.mask is not None and sha256(record.mask) != record.mask_digest:
        _changed(record.mask)
    return shown, mask


def _changed(path: Path) -> None:
    raise DatasetError(f"{path.name} has changed since the dataset was loaded; run the graph again")


def _frames(record: ImageRecord, view: View) -> Tensor:
    span, clip = view.span, record.clip
    assert span is not None
    assert clip is not None
    width, height = view.size
    out = torch.empty(span.frames, height, width, 3)
    times = [span.start + i / span.fps for i in range(span.frames)]
    for i, image in enumerate(frames_at(record.path, times, clip.fps or span.fps)):
        if image.size != record.size:
            raise DatasetError(
                f"{record.name}: its frames change from {record.size[0]}x{record.size[1]} to"
                f" {image.size[0]}x{image.size[1]}; convert it to one size"
            )
        out[i] = view.cut(image)
    return out
