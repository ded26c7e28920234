"""Folders that a user can choose from: names and counts, nothing of what is in the files."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import natural_key
from .clips import CLIP_SUFFIXES
from .formats import SUFFIXES

MOST = 2000
"""Folders in a list."""
DEEPEST = 6


@dataclass(frozen=True, slots=True)
class FolderFound:
    name: str
    """Relative to the folder that was listed, with slashes."""
    pictures: int
    """Pictures and clips in it, without its subfolders."""
    changed: float
    """Seconds since 1970."""


def folders_below(root: Path) -> tuple[list[FolderFound], bool]:
    """All folders below `root`, parents before what is in them; and whether there are more than MOST.

    Links are not followed and hidden folders are left out; a folder that cannot be read is passed over.
    """
    found: list[FolderFound] = []
    waiting = deque([(root, "", 0)])
    while waiting:
        folder, name, depth = waiting.popleft()
        pictures, inner = 0, []
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                inner.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES | CLIP_SUFFIXES:
                pictures += 1
        if name:
            if len(found) == MOST:
                return _sorted(found), True
            found.append(FolderFound(name, pictures, _changed(folder)))
        if depth < DEEPEST:
            waiting += ((folder / i, f"{name}/{i}" if name else i, depth + 1) for i in sorted(inner))
    return _sorted(found), False


def _sorted(found: list[FolderFound]) -> list[FolderFound]:
    return sorted(found, key=lambda f: [natural_key(part) for part in f.name.split("/")])


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (e for e in entries if not e.name.startswith(".") and not e.is_symlink())
    except OSError:
        return


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
