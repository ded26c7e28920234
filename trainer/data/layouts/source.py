"""A folder of pictures, and how its pictures are trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DatasetError
from ..framing import Role
from ..metadata import SIDECAR_SUFFIXES, read_text

MAX_REPEATS = 1000
MAX_CONFIG_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    folder: Path
    """Nothing outside it is read."""
    nested: bool = False
    """Whether subfolders are read whatever their names."""
    repeats: int = 1
    role: Role | None = None
    """None is the role of the dataset."""
    caption_suffixes: tuple[str, ...] = SIDECAR_SUFFIXES
    caption: str = ""
    """Of pictures that have none, and no row in the metadata."""
    caption_from: str = "files"
    """files; name: the file's name, with spaces for underscores; given: `caption` for all."""
    framing: Mapping[str, Any] = field(default_factory=dict)
    """Fields of Framing that the layout sets."""
    trigger: str | None = None
    """What `[trigger]` in a caption stands for, and what is put before captions of the subject that lack it.
    None leaves captions as they are."""
    weight: float = 1.0
    """Factor on the loss of each picture."""
    mask_folder: Path | None = None
    """With masks of the same stems."""
    control_folders: tuple[Path, ...] = ()
    """With control pictures of the same stems."""
    config: Path | None = None
    """The file that said so."""

    def worded(self, caption: str) -> str:
        """The caption with the trigger in it."""
        if self.trigger is None:
            return caption
        caption = caption.replace("[trigger]", self.trigger)
        missing = self.role != "class" and self.trigger not in caption
        return f"{self.trigger} {caption}".strip() if missing else caption.strip()


def read_config(path: Path, parse: Callable[[str], Any], limit: int = MAX_CONFIG_BYTES) -> Any:
    """What a configuration file says. limit: its bytes.

    Raises DatasetError that names the file and, if known, the line.
    """
    text = read_text(path, limit)
    try:
        return parse(text)
    except (ValueError, RecursionError) as e:
        raise DatasetError(f"{path.name}: cannot be understood ({e}); correct it") from e


def parse_json(text: str) -> Any:
    return json.loads(text)


def folder_named(value: Any, config: Path, where: str) -> Path:
    """The folder that a configuration names: absolute, or relative to the configuration's own."""
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{config.name}: {where} names no folder; write a path")
    try:
        return config.parent / Path(value.strip()).expanduser()
    except (OSError, RuntimeError, ValueError) as e:
        raise DatasetError(f"{config.name}: {where} is no usable path ({e}); write another") from e


def whole_number(value: Any, low: int, high: int, where: str) -> int:
    """Raises DatasetError if it is none, or not within."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DatasetError(f"{where} is {value!r}; use a whole number from {low} to {high}")
    return value


def resolution_of(value: Any, where: str) -> int:
    """The side of the square with as many pixels: of a number, or of [width, height]."""
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) == 1:
        sides = sides * 2
    if len(sides) != 2 or not all(
        isinstance(s, (int, float)) and not isinstance(s, bool) and 16 <= s <= 8192 for s in sides
    ):
        raise DatasetError(f"{where} is {value!r}; use a number of pixels from 16 to 8192")
    return round(math.sqrt(sides[0] * sides[1]))
