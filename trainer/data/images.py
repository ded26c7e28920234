"""Reading pictures that may be broken or hostile, and cutting them to a bucket."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import warnings
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import DatasetError
from ..files import write_image
from . import formats
from .traits import Traits, traits_of

MAX_BYTES = 256 * 1024**2
MAX_PIXELS = 128_000_000
LARGE_PIXELS = 32_000_000
"""Of pictures with more, one is decoded at a time: each takes some ten bytes a pixel while it is."""
WHITE = (255, 255, 255)

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_CACHE_ENTRIES = 100_000
_large = threading.Lock()
_examined: dict[tuple[str, int, int], Examined] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What one look at a picture tells."""

    size: tuple[int, int]
    """(width, height) in pixels, after EXIF rotation."""
    digest: str
    """sha256 of the file's bytes, hex."""
    traits: Traits | None
    """None of a clip."""
    transparent: bool
    """Whether a part of it is."""
    animated: bool
    """Whether there is more than one frame; the first is used."""


def open_image(path: Path, *, alpha: bool = False) -> Image.Image:
    """The picture, fully decoded and turned upright by EXIF: mode RGB, transparency on white. With `alpha`,
    mode RGBA if it has any transparency. Of an animation the first frame.

    Raises DatasetError if the file is missing, empty, truncated, over MAX_BYTES or MAX_PIXELS, or in no
    format of `formats.FORMATS`, whatever its name.
    """
    image, _ = _decode(path, _read(path))
    return image if alpha else on_colour(image, WHITE)


def inspect_image(path: Path) -> tuple[tuple[int, int], str]:
    """The size and digest that `examine` finds."""
    found = examine(path)
    return found.size, found.digest


def examine(path: Path) -> Examined:
    """Decodes the whole picture once to know that it can be; later calls answer from memory as long as
    the file's time and size stay the same. Raises DatasetError as `open_image` does.
    """
    try:
        info = os.stat(path)
    except OSError as e:
        raise _unusable(path, f"cannot be read ({_why(e)}); check that it exists and may be read") from e
    key = (str(path), info.st_mtime_ns, info.st_size)
    if key not in _examined:
        data = _read(path)
        image, animated = _decode(path, data)
        found = Examined(
            size=image.size,
            digest=hashlib.sha256(data).hexdigest(),
            traits=traits_of(image),
            transparent=image.mode == "RGBA",
            animated=animated,
        )
        if len(_examined) >= _CACHE_ENTRIES:
            _examined.clear()
        _examined[key] = found
    return _examined[key]


def on_colour(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """RGB: what is transparent in an RGBA picture shows `colour`."""
    if image.mode == "RGB":
        return image
    page = Image.new("RGBA", image.size, (*colour, 255))
    page.alpha_composite(image)
    return page.convert("RGB")


def cover_box(
    size: tuple[int, int], target: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest part of a picture with the aspect ratio of `target`.

    place: which of these parts, 0 to 1 from left to right and from top to bottom; (0.5, 0.5) is the centre.
    """
    (w, h), (tw, th) = size, target
    scale = max(tw / w, th / h)
    cw, ch = min(w, tw / scale), min(h, th / scale)
    left, top = (w - cw) * place[0], (h - ch) * place[1]
    return left, top, min(w, left + cw), min(h, top + ch)


def scaled(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    *,
    reducing_gap: float | None = None,
) -> Image.Image:
    """`box` of the picture, scaled to `size` = (width, height) by Lanczos; without one, its centre.

    reducing_gap: Pillow's; what is only looked at is faster with it.
    """
    # Cropping first, to a fraction of a pixel, gives the same picture without the huge intermediate
    # that a 200x1 strip would be enlarged to.
    box = box or cover_box(image.size, size)
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=reducing_gap)


def fit(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """The centre of a picture, as `scaled` gives it: [H, W, 3], float32, 0 to 1."""
    return to_pixels(scaled(image, size))


def to_pixels(image: Image.Image) -> torch.Tensor:
    """[H, W, 3], float32, 0 to 1."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255.0)


def save_tensor(image: torch.Tensor, folder: Path) -> Path:
    """Write a picture [H, W, C] (C = 1, 3 or 4; 0 to 1) as 8-bit PNG named by its content; returns the path.

    A file that is there and whole stays as it is. Raises DatasetError for another shape or for values that
    are not finite, StorageError when the disk is full.
    """
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise DatasetError(f"images: a picture has shape {list(image.shape)}; expected height x width x 3")
    pixels = image.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(pixels).all()):
        raise DatasetError("images: a picture holds NaN or infinite values; check the node that made it")
    array = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    digest = hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()
    path = folder / f"{digest[:24]}.png"
    picture = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)
    if not _holds(path, picture):
        write_image(path, picture)
    return path


def _holds(path: Path, picture: Image.Image) -> bool:
    """Whether the file is there, whole, and shows this picture."""
    try:
        kept = open_image(path)
    except DatasetError:
        return False
    return kept.size == picture.size and kept.tobytes() == on_colour(_to_rgb(picture), WHITE).tobytes()


def _unusable(path: Path, reason: str) -> DatasetError:
    return DatasetError(f"{path.name}: {reason}")


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _read(path: Path) -> bytes:
    try:
        info = os.stat(path)
        # A pipe or a device with the name of a picture would block or never end.
        if not stat.S_ISREG(info.st_mode):
            raise _unusable(path, "is not a regular file; replace it by a picture")
        if info.st_size > MAX_BYTES:
            megabytes = f"{info.st_size / 1e6:.0f} MB (limit {MAX_BYTES / 1e6:.0f})"
            raise _unusable(path, f"has {megabytes}; save it smaller")
        data = path.read_bytes()
    except OSError as e:
        raise _unusable(path, f"cannot be read ({_why(e)}); check that it exists and may be read") from e
    if not data:
        raise _unusable(path, "the file is empty (0 bytes); copy it again")
    return data


class _StrictPillow:
    """Decode by our own limits: other packs switch Pillow's process-wide tolerance for truncated files on.

    Several threads may decode at once; the last to leave puts back what the first one found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._found = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._found.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
                self._found.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._found.close()


_strict_pillow = _StrictPillow()


def _decode(path: Path, data: bytes) -> tuple[Image.Image, bool]:
    """(the upright picture in mode RGB or RGBA, whether it has more frames)."""
    try:
        # Not Image.open(formats=None): that would let in all that Pillow knows, PostScript among it.
        with (
            ExitStack() as stack,
            _strict_pillow,
            Image.open(BytesIO(data), formats=formats.known()) as image,
        ):
            _check_header(path, image)
            stack.enter_context(_large if image.width * image.height > LARGE_PIXELS else nullcontext())
            # MPO is what many phones and cameras write as .jpg: the photo, then a thumbnail or gain map as
            # "frames". Asked before decoding: afterwards Pillow would have to begin again.
            animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
            image.load()
            # Not ImageOps.exif_transpose: it also writes the EXIF block anew and fails on odd ones.
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
            flat = _to_rgb(image)
            return flat if turn is None else flat.transpose(turn), animated
    except DatasetError:
        raise
    except UnidentifiedImageError as e:
        raise _unusable(path, formats.unknown(data)) from e
    except Image.DecompressionBombError as e:
        raise _unusable(path, "has more pixels than Pillow allows; save it smaller") from e
    except MemoryError as e:
        raise _unusable(path, "needs more memory than there is; save it smaller") from e
    except Exception as e:  # Pillow's decoders raise nearly anything on a broken file
        raise _unusable(path, f"is damaged or truncated ({e}); copy it again or leave it out") from e


def _check_header(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        million = f"{width * height / 1e6:.0f} million pixels (limit {MAX_PIXELS / 1e6:.0f})"
        raise _unusable(path, f"has {width}x{height}, {million}; save it smaller")


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB, or RGBA if a part of it is transparent."""
    if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        grey = np.asarray(image).astype(np.float32)
        grey = grey.clip(0, 1) * 255 if image.mode == "F" else grey.clip(0, 65535) / 257
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    lowest, _ = rgba.getchannel("A").getextrema()
    return rgba if lowest != 255 else rgba.convert("RGB")
