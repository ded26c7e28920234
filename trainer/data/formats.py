"""Which formats of pictures are read: those that this Pillow decodes, and two that a package adds."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, features


@dataclass(frozen=True, kw_only=True)
class Format:
    name: str
    """Pillow's, and what messages say."""
    suffixes: tuple[str, ...]
    package: str = ""
    """What brings the decoder, where Pillow may lack it."""
    feature: str = ""
    """Pillow's name of a decoder that it may have been built without."""
    module: str = ""
    opener: str = ""
    """Function of the module that tells Pillow; "" when importing it is enough."""
    marks: tuple[bytes, ...] = ()
    """What the bytes of such a file hold near their beginning."""


FORMATS = (
    Format(name="JPEG", suffixes=(".jpg", ".jpeg", ".jfif")),
    Format(name="PNG", suffixes=(".png", ".apng")),
    Format(
        name="WEBP", suffixes=(".webp",), package="a Pillow built with WebP", feature="webp", marks=(b"RIFF",)
    ),
    Format(name="BMP", suffixes=(".bmp",)),
    Format(name="TIFF", suffixes=(".tif", ".tiff")),
    Format(name="GIF", suffixes=(".gif",)),
    Format(
        name="AVIF",
        suffixes=(".avif",),
        package="Pillow 11.3 or newer",
        feature="avif",
        marks=(b"ftypavif", b"ftypavis"),
    ),
    Format(
        name="HEIF",
        suffixes=(".heic", ".heif"),
        package="pillow-heif",
        module="pillow_heif",
        opener="register_heif_opener",
        marks=(b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"),
    ),
    Format(
        name="JXL",
        suffixes=(".jxl",),
        package="pillow-jxl-plugin",
        module="pillow_jxl",
        marks=(b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n"),
    ),
)
SUFFIXES = frozenset(suffix for f in FORMATS for suffix in f.suffixes)
OTHER_PICTURES = frozenset(
    {".cr2", ".dds", ".dng", ".exr", ".hdr", ".ico", ".jp2", ".nef", ".psd", ".svg", ".tga"}
)
"""Pictures that are not read, and said to be there."""


@lru_cache(maxsize=1)
def known() -> tuple[str, ...]:
    """Pillow's names of the formats that can be decoded here. Brings in the packages that are there."""
    Image.init()
    for f in FORMATS:
        if f.module and f.name not in Image.OPEN:
            _register(f)
    return tuple(
        f.name for f in FORMATS if f.name in Image.OPEN and (not f.feature or features.check(f.feature))
    )


def unknown(data: bytes) -> str:
    """What to say of bytes that no known format begins with."""
    for f in FORMATS:
        if f.package and f.name not in known() and any(_begins(data, mark) for mark in f.marks):
            return f"is {f.name}, which needs {f.package}; install it, or convert the file to PNG"
    return "is no JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF picture inside; convert it to PNG"


def _begins(data: bytes, mark: bytes) -> bool:
    return data[: len(mark)] == mark or data[4 : 4 + len(mark)] == mark


def _register(f: Format) -> None:
    try:
        module = importlib.import_module(f.module)
        opener: Callable[[], object] | None = getattr(module, f.opener, None) if f.opener else None
        if opener is not None:
            opener()
    except Exception:  # noqa: BLE001  a plug-in that does not load is as good as none; `unknown` names it
        return
