"""Hugging Face's imagefolder: splits as folders, or metadata that names pictures in subfolders.

train/metadata.jsonl        {"file_name": "dogs/1.png", "text": "…"}
train/dogs/1.png
validation/…                held out

The metadata may be a .csv or a .parquet, too, one in each split.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..formats import SUFFIXES
from ..framing import Role
from ..metadata import METADATA_NAMES
from ..records import Problem
from .source import Source

_ROLES: dict[str, Role | None] = {
    "train": None,
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
_UNUSED = ("test", "testing", "eval", "evaluation")


def recognises(path: Path) -> bool:
    """A folder without pictures of its own that has a split for training, or metadata."""
    try:
        entries = list(os.scandir(path))
    except (OSError, ValueError):
        return False  # who reads the folder says why
    if any(Path(e.name).suffix.lower() in SUFFIXES for e in entries):
        return False
    names = {e.name.lower() for e in entries}
    return "train" in names or (path / "data" / "train").is_dir() or bool(names & set(METADATA_NAMES))


def read(path: Path, problems: list[Problem]) -> list[Source]:
    base = path / "data" if (path / "data" / "train").is_dir() else path
    splits = {p.name.lower(): p for p in sorted(base.iterdir()) if p.is_dir()}
    if "train" not in splits:
        return [Source(folder=path, nested=True)]
    for file in sorted(base.iterdir()):
        if file.name.lower() in METADATA_NAMES:
            reason = "lies beside the folder train and is not read; move it into it"
            problems.append(Problem(path=file, reason=reason))
    for name in _UNUSED:
        if name in splits:
            reason = "is a split for tests and is not used; move what should be trained to train"
            problems.append(Problem(path=splits[name], reason=reason))
    return [
        Source(folder=splits[name], nested=True, role=role) for name, role in _ROLES.items() if name in splits
    ]
