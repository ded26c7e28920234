"""Which runs are being trained now, here or by another process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..files import is_writing, write_text

FILE = "training.pid"
_ours: set[Path] = set()


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """For the length of the block `is_in_use(folder)` is true, in every process."""
    path = folder / FILE
    _ours.add(path)
    try:
        write_text(path, str(os.getpid()))
        yield
    finally:
        _ours.discard(path)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def is_in_use(folder: Path) -> bool:
    """False for what a process left behind that was killed."""
    path = folder / FILE
    try:
        return path in _ours or is_writing(int(path.read_text()[:12]), path.stat().st_mtime)
    except (OSError, ValueError):
        return False
