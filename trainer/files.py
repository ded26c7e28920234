"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .errors import StorageError

UNFINISHED = ".part"


def write_whole(path: Path, data: bytes, *, replace: bool = True, sync: bool = True) -> bool:
    """Write under a temporary name, sync, rename: the final name never holds half a file.

    False, and nothing done, when the name is taken and may not be replaced. sync: without it a loss of power
    may leave half a file after all; for files that can be made again. Raises StorageError when the disk is
    full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as f:
            f.write(data)
            if sync:
                f.flush()
                os.fsync(f.fileno())
        if replace:
            part.replace(path)
        elif not _take_name(part, path):
            return False
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return True


def not_written(path: Path, error: OSError) -> StorageError:
    reason = error.strerror or error
    return StorageError(f"{path} cannot be written ({reason}); make space on the disk or the folder writable")


def _take_name(part: Path, path: Path) -> bool:
    """Give a file a name that nothing has, also when another process wants the same one."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        part.rename(path)
    return True


def copy_as_new(source: Path, folder: Path, name: str, before: Callable[[Path], None]) -> Path:
    """Copy to `<folder>/<name>` with the suffix of `source`, or to `<name>_2`, `_3`, … when that is taken.

    No file is ever overwritten. before: is told the path before anything is there.
    """
    files = {folder: source.read_bytes()}
    return folder / write_as_new(files, name, source.suffix, lambda own: before(folder / own))


def write_as_new(files: Mapping[Path, bytes], name: str, suffix: str, before: Callable[[str], None]) -> str:
    """Write one file into each of the folders, under one name that is free in all: `name`, `name_2`, ….

    Returns the file name. before: is told it before anything is there.
    """
    for n in itertools.count(1):
        own = f"{name}{f'_{n}' if n > 1 else ''}{suffix}"
        if any((folder / own).exists() for folder in files):
            continue
        before(own)
        written: list[Path] = []
        for folder, data in files.items():
            if not write_whole(folder / own, data, replace=False):
                break
            written.append(folder / own)
        else:
            return own
        for path in written:
            path.unlink()
    raise AssertionError("itertools.count ended")


_DRAFT = re.compile(rf"\..+\.([0-9]+){re.escape(UNFINISHED)}")


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write below `folder`, and no other process is writing."""
    for part in folder.rglob(f".*{UNFINISHED}"):
        match = _DRAFT.fullmatch(part.name)
        with contextlib.suppress(OSError):
            if match and not is_writing(int(match[1]), part.stat().st_mtime):
                part.unlink()


def is_writing(pid: int, since: float) -> bool:
    """Whether another process of this number runs that is older than a file which it would have written."""
    if pid == os.getpid():
        return False  # a container's processes get the same numbers again
    try:
        return psutil.Process(pid).create_time() <= since
    except psutil.Error:
        return False


def write_image(path: Path, image: Image.Image, text: Mapping[str, str] | None = None) -> None:
    """A PNG file with `text` as its text chunks."""
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    write_whole(path, buffer.getvalue())


def _sync_folder(folder: Path) -> None:
    # Without this a power loss may undo the rename. Windows cannot open folders.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """None when the file is missing or not whole. Numbers that are none, such as NaN, are not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def sha256(path: Path) -> str:
    """Hex digest of a file; "" when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers in names by value: img2 before img10."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], name
