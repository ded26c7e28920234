"""Files of ours that results in memory point at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class KeptFiles:
    """Notices when files are deleted or changed behind a result that ComfyUI has cached."""

    def __init__(self) -> None:
        self._states: dict[Path, tuple[int, int] | None] = {}
        self._losses = 0

    def add(self, paths: Iterable[Path]) -> None:
        self._states.update((path, _state(path)) for path in paths)

    def losses(self) -> int:
        """How often files were found deleted or changed since they were added. Each is reported once."""
        lost = [path for path, state in self._states.items() if _state(path) != state]
        for path in lost:
            del self._states[path]
        self._losses += bool(lost)
        return self._losses


def _state(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_size, info.st_mtime_ns
