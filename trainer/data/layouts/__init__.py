"""What a path can be besides a folder of pictures: the datasets of other trainers. One file for each.

A layout says which folders are read, and how each is; `scan` reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..records import Problem
from . import aitoolkit, imagefolder, kohya, simpletuner
from .source import Source


@dataclass(frozen=True)
class Layout:
    recognises: Callable[[Path], bool]
    read: Callable[[Path, list[Problem]], list[Source]]
    """The folders to read. What is not understood goes to the list. Raises DatasetError."""


LAYOUTS = (
    Layout(kohya.recognises, kohya.read),
    Layout(aitoolkit.recognises, aitoolkit.read),
    Layout(simpletuner.recognises, simpletuner.read),
    Layout(imagefolder.recognises, imagefolder.read),
)


def sources(path: Path, problems: list[Problem], *, subfolders: bool = False) -> list[Source]:
    """The folders that a path stands for: those of the first layout that recognises it, or itself."""
    for layout in LAYOUTS:
        if layout.recognises(path):
            return layout.read(path, problems)
    return [Source(folder=path, nested=subfolders)]
