"""Clips that tests write: the same frames in each container."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

CODECS = {".mp4": "libx264", ".mov": "mpeg4", ".mkv": "ffv1", ".webm": "libvpx-vp9", ".avi": "mpeg4"}


def frame(index: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """[H, W, 3] uint8: grey of 8 + 3 times the index, which survives any codec, with a darker left half."""
    width, height = size
    out = np.full((height, width, 3), 8 + 3 * index, np.uint8)
    out[:, : width // 2] //= 2
    return out


def index_of(image: Image.Image) -> int:
    """Which frame a decoded picture shows."""
    right = np.asarray(image, np.float32)[:, image.width // 2 + 4 :]
    return round((float(right.mean()) - 8) / 3)


def write_clip(
    path: Path,
    frames: int = 24,
    fps: Fraction | int = 24,
    size: tuple[int, int] = (64, 48),
    codec: str = "",
) -> Path:
    """A clip whose frame i is `frame(i)`. The suffix decides the container; .gif goes through Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [Image.fromarray(frame(i, size)) for i in range(frames)]
    if path.suffix == ".gif":
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps))
        return path
    with av.open(str(path), "w", options={"movflags": "faststart"}) as out:  # the index before the frames
        stream = out.add_stream(codec or CODECS[path.suffix], rate=Fraction(fps))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p" if stream.codec.name == "ffv1" else "yuv420p"
        if stream.codec.name == "libx264":
            stream.options = {"crf": "10", "preset": "ultrafast"}
        stream.codec_context.gop_size = 12
        stream.bit_rate = 2_000_000
        for picture in pictures:
            for packet in stream.encode(av.VideoFrame.from_image(picture)):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return path


def write_frames(folder: Path, frames: int = 24, size: tuple[int, int] = (64, 48)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(frames):
        Image.fromarray(frame(i, size)).save(folder / f"{i}.png")
    return folder
