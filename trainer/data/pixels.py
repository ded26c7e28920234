"""From a record to what the VAE encodes, and to what is shown."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import DatasetError
from .clips import GIF, frames_at, inspect_clip, is_clip
from .images import inspect_image, open_image
from .records import Clip, ClipOptions, ImageRecord
from .views import View


def inspect(path: Path, options: ClipOptions) -> tuple[tuple[int, int], str, Clip | None]:
    """((width, height) upright, digest, what it is as a clip) of a picture or clip. Raises DatasetError."""
    gif = path.suffix.lower() == GIF
    if gif and not options.gifs:
        raise DatasetError(
            f"{path.name}: is an animation; switch gifs on in Video Clips to train it as a clip, or save one"
            " frame as PNG"
        )
    if not gif and not is_clip(path):
        return *inspect_image(path), None
    found = inspect_clip(path)
    return found.size, found.digest, Clip(frames=found.frames, fps=found.fps, options=options)


def pixels(record: ImageRecord, view: View) -> Tensor:
    """What is trained of the record: [H, W, 3] of a picture, [T, H, W, 3] of a clip; float32, 0 to 1.

    Of a clip no more than one decoded frame is held beside the result. Raises DatasetError.
    """
    span, clip = view.span, record.clip
    if span is None or clip is None:
        return view.cut(open_image(record.path))
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


def cover(record: ImageRecord) -> Image.Image:
    """The picture, or the first frame of the clip. Raises DatasetError."""
    if record.clip is None:
        return open_image(record.path)
    return next(frames_at(record.path, [0.0], record.clip.fps or 1.0))
