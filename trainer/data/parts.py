"""The directories of a dataset, and what lies in each: pictures, captions, masks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import DatasetError, shortened
from ..files import natural_key
from .clips import CLIP_SUFFIXES, FRAME_FOLDER
from .controls import alone, controls_beside
from .formats import OTHER_PICTURES
from .formats import SUFFIXES as IMAGE_SUFFIXES
from .layouts.source import Source
from .metadata import SIDECAR_SUFFIXES
from .records import Problem, UnreadFolder

MASK_ENDING = "-masklabel"
MASK_FOLDER = "masks"
MAX_FOLDER_REPEATS = 1000

_REPEATS = re.compile(r"([0-9]+)_.+", re.DOTALL)

Listing = tuple[tuple[Path, ...], tuple[Path, ...]]
NOTHING: Listing = ((), ())


@dataclass(frozen=True)
class Part:
    """One directory of the dataset, without hidden files."""

    files: tuple[Path, ...]
    repeats: int = 1
    mask_files: tuple[Path, ...] = ()
    """Of its own mask folder."""
    shared_masks: tuple[Path, ...] = ()
    """Of a mask folder that serves all directories."""
    caption_suffixes: tuple[str, ...] = SIDECAR_SUFFIXES

    @cached_property
    def pictures(self) -> list[Path]:
        controls = {p for beside in self.controls.values() for p in beside}
        return [p for p in self._own if p not in controls]

    @cached_property
    def _own(self) -> list[Path]:
        """Pictures and control pictures."""
        read = IMAGE_SUFFIXES | CLIP_SUFFIXES
        return [p for p in self.files if p.suffix.lower() in read and not _is_mask(p)]

    @cached_property
    def controls(self) -> dict[str, list[Path]]:
        """Stem of the picture → the control pictures beside it."""
        return controls_beside(self._own)

    @cached_property
    def masks(self) -> dict[str, Path]:
        """Stem of the picture → its mask."""
        in_folder = {p.stem: p for p in _images((*self.shared_masks, *self.mask_files))}
        return in_folder | {p.stem[: -len(MASK_ENDING)]: p for p in self.files if _is_mask(p)}

    @cached_property
    def _sidecars(self) -> dict[tuple[str, str], Path]:
        found = [(p, p.suffix.lower()) for p in self.files]
        return {(p.stem, suffix): p for p, suffix in found if suffix in self.caption_suffixes}

    def sidecar(self, picture: Path) -> Path | None:
        """The caption file of a picture: .txt before .caption."""
        same = (self._sidecars.get((picture.stem, suffix)) for suffix in self.caption_suffixes)
        return next((path for path in same if path is not None), None)

    def unused(self) -> Iterator[Problem]:
        """What is not read, and what belongs to no picture or to two."""
        for path in self.files:
            if path.suffix.lower() in OTHER_PICTURES:
                reason = f"{path.suffix.lower()} is not supported; convert it to JPEG, PNG or WebP"
                yield Problem(path=path, reason=reason)
        stems: dict[str, Path] = {}
        for path in self.pictures:
            if (first := stems.setdefault(path.stem, path)) is not path and (
                self.sidecar(path) or path.stem in self.masks
            ):
                reason = (
                    f"has the caption and the mask of {first.name}, whose name differs only in the ending"
                )
                yield Problem(path=path, reason=f"{reason}; rename one of them", skipped=False)
        for stem in sorted(self.masks.keys() - stems.keys()):
            own = self.masks[stem] not in self.shared_masks
            if own and (self.masks[stem] in self.files or self.pictures):
                yield _unused_mask(self.masks[stem], stem)
        yield from alone(self._own)
        texts = {*SIDECAR_SUFFIXES, *self.caption_suffixes}
        beside = {p.stem for p in self.files if p.suffix.lower() not in texts}
        left = [p for (stem, _), p in self._sidecars.items() if stem not in beside]
        if left and self.pictures:
            reason = f"captions without a picture: {shortened(p.name for p in left)}; rename or remove them"
            yield Problem(path=left[0].parent, reason=reason, skipped=False)


def parts_of(
    source: Source,
    problems: list[Problem],
    mask_folder: Path | None = None,
    control_folders: Sequence[Path] = (),
) -> list[Part]:
    """The folder itself, then its subfolders that are read. Raises DatasetError if it cannot be read.

    mask_folder, control_folders: what lies in these is no picture of its own.
    """
    mask_folder = source.mask_folder or mask_folder
    given = _listing(mask_folder)[0] if mask_folder else ()
    apart = [*control_folders, *source.control_folders, *([mask_folder] if mask_folder else [])]
    files, subfolders = _listing(source.folder)
    found = list[Part]()
    waiting = [(source.folder, 1, files, subfolders)]
    seen = {source.folder.resolve(), *(folder.resolve() for folder in apart)}
    while waiting:
        folder, repeats, files, subfolders = waiting.pop(0)
        masks = [s for s in subfolders if s.name.lower() == MASK_FOLDER]
        inside = [p for s in masks for p in (_read(s, source, problems) or NOTHING)[0]]
        found.append(Part(files, repeats, tuple(inside), given, source.caption_suffixes))
        if folder != source.folder and not source.nested:
            continue
        for subfolder in subfolders:
            if subfolder in masks or not (times := _repeats(subfolder, source, problems)):
                continue
            inner = _read(subfolder, source, problems)
            # A link to a folder above would be read for ever.
            if inner and (real := subfolder.resolve()) not in seen:
                seen.add(real)
                waiting.append((subfolder, times, *inner))
    for part in found:
        problems.extend(part.unused())
    stems = {p.stem for part in found for p in part.pictures}
    problems.extend(_unused_mask(p, p.stem) for p in _images(given) if stems and p.stem not in stems)
    return found


def _read(folder: Path, source: Source, problems: list[Problem]) -> Listing | None:
    """None for a folder that cannot be read, which is said."""
    try:
        confine(folder, source.folder)
        return _listing(folder)
    except DatasetError as e:
        problems.append(problem_of(folder, e))
        return None


def _repeats(subfolder: Path, source: Source, problems: list[Problem]) -> int:
    """How often an epoch shows the pictures of a subfolder, by its name; 0 for one that is not read."""
    match = _REPEATS.fullmatch(subfolder.name)
    if source.nested and source.config:  # numbers in names are kohya's, not those of who wrote this file
        return 1
    if match and 1 <= int(match[1]) <= MAX_FOLDER_REPEATS:
        return int(match[1])
    if source.nested:
        return 1
    if match:
        reason = f"the name asks for {match[1]} repeats (1 to {MAX_FOLDER_REPEATS} are possible)"
        problems.append(Problem(path=subfolder, reason=f"{reason}; rename it to 1_name"))
    elif count := len(Part((_read(subfolder, source, problems) or NOTHING)[0]).pictures):
        reason = f"is a subfolder with pictures ({count}); rename it to 1_name, or switch subfolders on"
        problems.append(UnreadFolder(path=subfolder, reason=reason))
    return 0


def _listing(folder: Path) -> Listing:
    """(files, subfolders) in natural order, without hidden ones."""
    try:
        if not folder.exists():
            raise DatasetError(f"{folder}: there is no such folder; check the path")
        if not folder.is_dir():
            raise DatasetError(f"{folder}: is a file; give the folder that holds the pictures")
        visible = (p for p in folder.iterdir() if not p.name.startswith("."))
        found = sorted(visible, key=lambda p: natural_key(p.name))
        kinds = [p.is_dir() and p.suffix.lower() != FRAME_FOLDER for p in found]
    except OSError as e:
        why = (e.strerror or str(e)).lower()
        raise DatasetError(f"{folder}: the folder cannot be read ({why}); check its permissions") from e
    except ValueError as e:  # a NUL character in the path
        raise DatasetError(f"{str(folder)!r}: is not a path ({e}); type it again") from e
    files = tuple(p for p, is_dir in zip(found, kinds, strict=True) if not is_dir)
    return files, tuple(p for p, is_dir in zip(found, kinds, strict=True) if is_dir)


def confine(path: Path, root: Path) -> None:
    """A dataset from elsewhere may hold links to private files; captions end up in the LoRA's metadata."""
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as e:
        raise DatasetError(f"{path.name}: is a broken link; replace it by the file") from e
    if not inside:
        raise DatasetError(f"{path.name}: is a link that leads out of the folder; copy the file in instead")


def problem_of(path: Path, error: DatasetError) -> Problem:
    reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")
    return Problem(path=path, reason=reason)


def _images(files: Iterable[Path]) -> Iterator[Path]:
    return (p for p in files if p.suffix.lower() in IMAGE_SUFFIXES)


def _unused_mask(path: Path, stem: str) -> Problem:
    return Problem(path=path, reason=f"is a mask and there is no picture {stem}; rename it, or remove it")


def _is_mask(path: Path) -> bool:
    return path.stem.endswith(MASK_ENDING) and path.suffix.lower() == ".png"
