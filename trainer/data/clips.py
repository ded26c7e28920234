"""Reading clips that may be broken or hostile: video files by PyAV, and folders of numbered pictures.

A folder named like `walk.frames` is the clip walk: its pictures in natural order. A video file is opened by
the demuxer that its first bytes call for and no other, as a file object: playlists, references to other files
and network addresses inside are never followed. Frames are decoded one by one, only as far as asked.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DatasetError
from ..files import natural_key
from .images import inspect_image, open_image

FRAME_FOLDER = ".frames"
FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
GIF = ".gif"
CLIP_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", FRAME_FOLDER})
MAX_BYTES = 4 * 1024**3
MAX_PIXELS = 8192 * 4320
MAX_COUNT = 500_000
"""Frames of a clip."""
MAX_RATE = 1000.0
DECODER_THREADS = 4

_SEEK_BEYOND = 2.0
"""Seconds; what begins earlier is reached by decoding from the start."""
_CACHE_ENTRIES = 20_000
_inspected: dict[tuple[str, int, int], Inspected] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspected:
    size: tuple[int, int]
    """(width, height) in pixels, upright."""
    digest: str
    """sha256 in hex: of the file's bytes, or of its frames' digests."""
    frames: int
    fps: float
    """Frames a second on average; 0 for a folder of frames."""


def is_clip(path: Path) -> bool:
    """Whether the name is that of a clip. GIFs are clips only where that is asked for."""
    return path.suffix.lower() in CLIP_SUFFIXES


def inspect_clip(path: Path) -> Inspected:
    """What a clip is. Reads the whole file and decodes its first frame; later calls answer from memory as
    long as time and size stay the same.

    Raises DatasetError if it is missing, empty, truncated, over one of the limits, without frames, or none of
    mp4, mov, mkv, webm, avi and gif inside, whatever its name.
    """
    if path.suffix.lower() == FRAME_FOLDER:
        return _inspect_folder(path)
    info = _regular(path)
    key = (str(path), info.st_mtime_ns, info.st_size)
    if key not in _inspected:
        found = _inspect_file(path)
        if len(_inspected) >= _CACHE_ENTRIES:
            _inspected.clear()
        _inspected[key] = found
    return _inspected[key]


def frames_at(path: Path, times: Sequence[float], fps: float) -> Iterator[Image.Image]:
    """The frame nearest to each of the times: upright, mode RGB.

    times: seconds after the first frame, ascending. fps: the clip's own rate; of a folder of frames, the rate
    that its pictures are shown at. Raises DatasetError if the clip cannot be read that far.
    """
    if path.suffix.lower() == FRAME_FOLDER:
        files = _frame_files(path)
        for t in times:
            yield open_image(files[min(len(files) - 1, round(t * fps))])
        return
    _regular(path)
    with _explained(path), _opened(path) as (container, stream):
        yield from _nearest(path, container, stream, times, fps)


def state(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns) of a file, or of a whole folder of frames. Raises OSError."""
    info = path.stat()
    if not stat.S_ISDIR(info.st_mode):
        return info.st_size, info.st_mtime_ns
    inside = [entry.stat() for entry in os.scandir(path)]
    return sum(i.st_size for i in inside), max([info.st_mtime_ns, *(i.st_mtime_ns for i in inside)])


# --- folders of frames -----------------------------------------------------------------------------------


def _frame_files(folder: Path) -> list[Path]:
    try:
        root = folder.resolve(strict=True)
        visible = [p for p in folder.iterdir() if not p.name.startswith(".")]
    except OSError as e:
        raise _unusable(folder, f"cannot be read ({_why(e)}); check its permissions") from e
    files = sorted(
        (p for p in visible if p.suffix.lower() in FRAME_SUFFIXES), key=lambda p: natural_key(p.name)
    )
    if not files:
        raise _unusable(folder, "holds no frames; put JPEG, PNG or WebP pictures with numbers into it")
    if len(files) > MAX_COUNT:
        raise _unusable(folder, f"has {len(files)} frames (limit {MAX_COUNT}); split it")
    for file in files:
        if not file.resolve().is_relative_to(root):
            raise _unusable(folder, f"{file.name} is a link that leads out of it; copy the file in instead")
    return files


def _inspect_folder(folder: Path) -> Inspected:
    files = _frame_files(folder)
    size: tuple[int, int] | None = None
    digest = hashlib.sha256()
    for file in files:
        try:
            own, print_ = inspect_image(file)
        except DatasetError as e:
            raise _unusable(folder, f"a frame cannot be used: {e}") from e
        if size is not None and own != size:
            told = f"{file.name} has {own[0]}x{own[1]} and the frames before {size[0]}x{size[1]}"
            raise _unusable(folder, f"{told}; save all frames at one size")
        size = own
        digest.update(print_.encode())
    assert size is not None
    return Inspected(size=size, digest=digest.hexdigest(), frames=len(files), fps=0.0)


# --- video files -----------------------------------------------------------------------------------------


def _demuxer(head: bytes) -> str | None:
    """FFmpeg's name for what the first 12 bytes say the file is."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:11] == b"AVI":
        return "avi"
    return "gif" if head.startswith((b"GIF87a", b"GIF89a")) else None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream)."""
    import av  # ComfyUI brings it; nothing needs it until there is a clip

    with path.open("rb") as file:
        demuxer = _demuxer(file.read(12))
        if demuxer is None:
            raise _unusable(path, "is not an mp4, mov, mkv, webm, avi or gif inside; convert it to mp4")
        file.seek(0)
        options = {"max_pixels": str(MAX_PIXELS)}
        with av.open(
            file, format=demuxer, options=options, metadata_errors="ignore", buffer_size=1 << 20
        ) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise _unusable(path, "holds no video that can be decoded; convert it to mp4 with H.264")
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PIXELS:
                million = f"{width * height / 1e6:.0f} million pixels (limit {MAX_PIXELS / 1e6:.0f})"
                raise _unusable(path, f"has {width}x{height}, {million}; save it smaller")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = DECODER_THREADS
            yield container, stream


def _inspect_file(path: Path) -> Inspected:
    digest = hashlib.sha256()
    with _explained(path):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        with _opened(path) as (container, stream):
            first = next(_decoded(container, stream), None)
            if first is None:
                raise _unusable(path, "has no frames; leave it out, or copy it again")
            size = _picture(first).size
        with _opened(path) as (container, stream):
            frames, seconds = _counted(path, container, stream)
            fps = float(stream.average_rate or 0)
    if not 0 < fps <= MAX_RATE:
        fps = (frames - 1) / seconds if seconds > 0 else 1.0
    if not fps <= MAX_RATE:
        raise _unusable(path, f"has {fps:g} frames a second (limit {MAX_RATE:g}); convert it to mp4")
    return Inspected(size=size, digest=digest.hexdigest(), frames=frames, fps=fps)


def _counted(path: Path, container: Any, stream: Any) -> tuple[int, float]:
    """(frames that the file really holds, seconds from the first to the last of them). Decodes nothing."""
    frames, times = 0, []
    for packet in container.demux(stream):
        if packet.size:
            frames += 1
            if packet.pts is not None:
                times = (
                    [min(packet.pts, *times[:1]), max(packet.pts, *times[1:])] if times else [packet.pts] * 2
                )
        if frames > MAX_COUNT:
            raise _unusable(path, f"has over {MAX_COUNT} frames; cut it into scenes")
    if not frames:
        raise _unusable(path, "has no frames; leave it out, or copy it again")
    if stream.frames > frames:
        told = f"holds {frames} of the {stream.frames} frames that it promises"
        raise _unusable(path, f"{told}; copy it again")
    return frames, float((times[1] - times[0]) * stream.time_base) if times else 0.0


def _nearest(
    path: Path, container: Any, stream: Any, times: Sequence[float], fps: float
) -> Iterator[Image.Image]:
    half = 0.49 / fps  # between two frames the earlier one is on the screen
    origin = float(stream.start_time * stream.time_base) if stream.start_time is not None else None
    if origin is not None and times[0] > _SEEK_BEYOND:
        container.seek(int((origin + times[0] - half) / stream.time_base), stream=stream)
    waiting = list(reversed(times))
    held, at = None, 0.0
    for frame in _decoded(container, stream):
        seconds = float(frame.time) if frame.time is not None else (origin or 0.0) + at + 1 / fps
        origin = seconds if origin is None else origin
        while held is not None and waiting and seconds - origin > waiting[-1] + half:
            waiting.pop()
            yield _picture(held)
        if not waiting:
            return
        held, at = frame, seconds - origin
    if held is None or waiting[0] > at + 3 * half:
        raise _unusable(path, f"cannot be decoded beyond {at:.2f} s; copy it again, or convert it to mp4")
    for _ in waiting:
        yield _picture(held)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        yield from packet.decode()


def _picture(frame: Any) -> Image.Image:
    """Upright, mode RGB."""
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(f"a frame has {frame.width}x{frame.height} pixels")
    image = frame.to_image()
    turn = round(getattr(frame, "rotation", 0)) % 360
    return image.rotate(turn, expand=True) if turn else image


def _regular(path: Path) -> os.stat_result:
    try:
        info = path.stat()
    except OSError as e:
        raise _unusable(path, f"cannot be read ({_why(e)}); check that it exists and may be read") from e
    # A pipe or a device with the name of a clip would block or never end.
    if not stat.S_ISREG(info.st_mode):
        raise _unusable(path, "is not a regular file; replace it by a clip")
    if info.st_size > MAX_BYTES:
        raise _unusable(
            path, f"has {info.st_size / 1e9:.1f} GB (limit {MAX_BYTES / 1e9:.1f}); cut it into scenes"
        )
    if not info.st_size:
        raise _unusable(path, "the file is empty (0 bytes); copy it again")
    return info


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except ImportError as e:
        raise _unusable(path, "needs PyAV to be read; install ComfyUI's requirements.txt") from e
    except Exception as e:  # FFmpeg's decoders fail in many ways on a broken file
        told = str(e).removeprefix("[Errno ").split(": '")[0] or type(e).__name__
        raise _unusable(path, f"is damaged or truncated ({told}); copy it again, or convert it to mp4") from e


def _unusable(path: Path, reason: str) -> DatasetError:
    return DatasetError(f"{path.name}: {reason}")


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
