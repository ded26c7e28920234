"""A zip of pictures, unpacked once into a folder that is named by its content.

Archives come from elsewhere: names that lead out, links, encryption, and far more bytes than the archive has
are refused before anything is written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from ...errors import DatasetError, StorageError, shortened
from ..formats import OTHER_PICTURES, SUFFIXES
from ..metadata import METADATA_NAMES, SIDECAR_SUFFIXES

MAX_FILES = 200_000
MAX_UNPACKED = 200 * 1024**3
MAX_RATIO = 200
"""Bytes unpacked for each byte of the archive, above MAX_SMALL of them."""
MAX_SMALL = 64 * 1024**2
MAX_DEPTH = 32
_CHUNK = 1024**2
_UNFINISHED_SECONDS = 3600


def is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def check_archive(path: Path) -> None:
    """Raises DatasetError for what `unpacked` would refuse before it writes."""
    with _opened(path) as archive:
        _members(path, archive)


def archive_fingerprint(path: Path) -> str:
    """Changes when the archive does."""
    info = path.stat()
    return f"{path.absolute()} {info.st_size} {info.st_mtime_ns}"


def unpacked(path: Path, into: Path) -> Path:
    """The folder below `into` that holds the pictures, captions and metadata of a zip; that one folder of it,
    where it holds nothing else. An archive that is there already is not unpacked again.

    Raises DatasetError for an archive that cannot be used, StorageError when the disk is full.
    """
    with _opened(path) as archive:
        members = _members(path, archive)
        h = hashlib.sha256()
        for info in members:
            h.update(f"{info.filename}\0{info.file_size}\0{info.CRC}\0".encode("utf-8", "surrogatepass"))
        folder = into / h.hexdigest()[:24]
        if not all(_is_there(folder / _relative(info), info.file_size) for info in members):
            _unpack(path, archive, members, folder)
    return _descended(folder)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as e:
        raise DatasetError(f"{path.name}: is not a zip that can be read ({e}); copy it again") from e


def _members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """What is unpacked: files whose names end like those of pictures, captions and metadata."""
    infos = archive.infolist()
    if len(infos) > MAX_FILES:
        raise DatasetError(f"{path.name}: holds {len(infos)} files (limit {MAX_FILES}); use a folder")
    wanted = [i for i in infos if not i.is_dir() and _is_wanted(i)]
    if odd := [i.filename for i in wanted if _leads_out(i)]:
        raise DatasetError(
            f"{path.name}: names that lead out of it, or links: {shortened(odd)}; pack it again"
        )
    if any(i.flag_bits & 1 for i in wanted):
        raise DatasetError(f"{path.name}: is encrypted; unpack it and give the folder")
    total, packed = sum(i.file_size for i in wanted), path.stat().st_size
    if total > MAX_UNPACKED or (total > MAX_SMALL and total > MAX_RATIO * packed):
        raise DatasetError(
            f"{path.name}: would unpack to {total / 1e9:.1f} GB from {packed / 1e6:.1f} MB, as a zip bomb"
            " does; unpack it yourself and give the folder if it is none"
        )
    if len({str(_relative(i)).casefold() for i in wanted}) != len(wanted):
        raise DatasetError(f"{path.name}: holds two files of the same name; pack it again")
    if not any(Path(i.filename).suffix.lower() in SUFFIXES for i in wanted):
        raise DatasetError(f"{path.name}: holds no pictures; pack JPEG, PNG or WebP files")
    return sorted(wanted, key=lambda i: i.filename)


def _is_wanted(info: zipfile.ZipInfo) -> bool:
    path = _inner(info)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts if part != "..")
    known = path.suffix.lower() in SUFFIXES | OTHER_PICTURES | set(SIDECAR_SUFFIXES)
    return not hidden and (known or path.name.lower() in METADATA_NAMES)


def _leads_out(info: zipfile.ZipInfo) -> bool:
    path = _inner(info)
    parts = path.parts
    return (
        path.is_absolute()
        or ".." in parts
        or "\0" in info.filename
        or len(parts) > MAX_DEPTH
        or any(":" in part for part in parts)
        or stat.S_ISLNK(info.external_attr >> 16)
    )


def _inner(info: zipfile.ZipInfo) -> PurePosixPath:
    return PurePosixPath(info.filename.replace("\\", "/"))


def _relative(info: zipfile.ZipInfo) -> Path:
    return Path(*_inner(info).parts)


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _unpack(path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    """Into a folder beside, which is renamed when it is whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_unfinished(folder)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for info in members:
                target = beside / _relative(info)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("wb") as out:
                    _copy(path, info, source, out)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as e:
        raise DatasetError(f"{path.name}: is damaged ({e}); copy it again") from e
    except OSError as e:
        why = (e.strerror or str(e)).lower()
        raise StorageError(f"{folder.parent}: {path.name} cannot be unpacked there ({why})") from e


def _clear_unfinished(folder: Path) -> None:
    """What a process left of this folder that was killed while it unpacked."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - left.stat().st_mtime > _UNFINISHED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _copy(path: Path, info: zipfile.ZipInfo, source: IO[bytes], out: IO[bytes]) -> None:
    """What an archive says of its sizes need not be true."""
    left = info.file_size
    while chunk := source.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise DatasetError(f"{path.name}: {info.filename} is larger than the archive says; pack it again")
        out.write(chunk)


def _descended(folder: Path) -> Path:
    """Into the one folder that many archives wrap around everything."""
    for _ in range(MAX_DEPTH):
        inside = list(folder.iterdir())
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in ("train", "data"):
            break
        folder = inside[0]
    return folder
