"""From a folder to a dataset.

Read are the pictures directly in the folder, and those in subfolders named like `10_cat`, which show
each picture ten times an epoch (kohya's layout). A picture's caption is, in this order: the .txt file
of the same name, the .caption file, its row in metadata.csv, its row in metadata.jsonl. The metadata may
also give it a weight. `cat-masklabel.png` is the mask of cat.jpg (OneTrainer's name).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import DatasetError, shortened
from .captions import METADATA_NAMES, SIDECAR_SUFFIXES, Described, read_metadata, read_text
from .clips import CLIP_SUFFIXES, FRAME_FOLDER, GIF, state
from .images import inspect_image
from .pixels import inspect
from .records import CLIPS, ClipOptions, Dataset, ImageRecord, Problem, Role

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
OTHER_PICTURES = frozenset(
    {".avif", ".bmp", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tga", ".tif", ".tiff"}
)
MASK_ENDING = "-masklabel"
MAX_FOLDER_REPEATS = 1000

_REPEATS = re.compile(r"([0-9]+)_.+", re.DOTALL)


def scan_folder(
    folder: str | os.PathLike[str],
    *,
    resolution: int = 512,
    repeats: int = 1,
    role: Role = "instance",
    clips: ClipOptions = CLIPS,
    on_file: Callable[[int, int], None] | None = None,
) -> Dataset:
    """All usable pictures of a folder in natural order (img2 before img10); those in subfolders come last.

    What is skipped is named in `problems`. `on_file(done, total)` is called before each picture.
    Raises DatasetError if the folder cannot be read or holds no usable picture.
    """
    root = Path(folder)
    problems: list[Problem] = []
    parts = _parts(root, problems)
    total = sum(len(part.pictures) for part in parts)
    listed = _metadata(parts, root, problems)
    records: list[ImageRecord] = []
    done = 0
    for part in parts:
        for path in part.pictures:
            if on_file is not None:
                on_file(done, total)
            done += 1
            row = listed.pop(path, Described())
            caption = row.caption or ""
            try:
                _confine(path, root)
                size, digest, clip = inspect(path, clips)
            except DatasetError as e:
                problems.append(_problem(path, e))
                continue
            if sidecar := part.sidecar(path):
                caption = _read_sidecar(sidecar, root, problems)
            mask, mask_digest = _read_mask(part.masks.get(path.stem), size, root, problems)
            records.append(
                ImageRecord(
                    path=path,
                    caption=caption,
                    size=size,
                    digest=digest,
                    repeats=part.repeats * repeats,
                    role=role,
                    weight=row.weight or 1.0,
                    mask=mask,
                    mask_digest=mask_digest,
                    clip=clip,
                )
            )
    if listed:
        names = shortened(p.relative_to(root).as_posix() for p in listed)
        problems.append(Problem(path=root, reason=f"metadata names pictures that are not there: {names}"))
    if not records:
        raise DatasetError(_nothing_usable(root, total, problems))
    return Dataset(records=tuple(records), problems=tuple(problems), resolution=resolution)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raises DatasetError if the folder cannot be read or no file in it is named like a picture."""
    root = Path(folder)
    problems: list[Problem] = []
    if not any(part.pictures for part in _parts(root, problems)):
        raise DatasetError(_nothing_usable(root, 0, problems))


def folder_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Changes when a picture's name, size or time, or the text of a caption changes. Decodes nothing.

    Raises DatasetError if the folder cannot be read.
    """
    root = Path(folder)
    h = hashlib.sha256(os.fsencode(root.absolute()))
    for part in _parts(root, []):
        for path in part.files:
            text = _is_text(path)
            if not text and path.suffix.lower() not in IMAGE_SUFFIXES | OTHER_PICTURES | CLIP_SUFFIXES:
                continue
            h.update(b"\0" + os.fsencode(path.relative_to(root)))
            try:
                _confine(path, root)
                size, changed = state(path)
                h.update(f"\0{size}\0{changed}".encode())
                if text:
                    h.update(read_text(path).encode("utf-8", "surrogatepass"))
            except (DatasetError, OSError) as e:
                h.update(f"\0{e}".encode("utf-8", "surrogateescape"))
    return h.hexdigest()


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers in names by value: img2 before img10."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


@dataclass(frozen=True)
class _Part:
    """One directory of the dataset, without hidden files."""

    files: tuple[Path, ...]
    repeats: int = 1

    @property
    def pictures(self) -> list[Path]:
        read = IMAGE_SUFFIXES | CLIP_SUFFIXES | {GIF}
        return [p for p in self.files if p.suffix.lower() in read and not _is_mask(p)]

    @cached_property
    def masks(self) -> dict[str, Path]:
        """Stem of the picture → its mask."""
        return {p.stem[: -len(MASK_ENDING)]: p for p in self.files if _is_mask(p)}

    @cached_property
    def _sidecars(self) -> dict[tuple[str, str], Path]:
        found = [(p, p.suffix.lower()) for p in self.files]
        return {(p.stem, suffix): p for p, suffix in found if suffix in SIDECAR_SUFFIXES}

    def sidecar(self, picture: Path) -> Path | None:
        """The caption file of a picture: .txt before .caption."""
        same = (self._sidecars.get((picture.stem, suffix)) for suffix in SIDECAR_SUFFIXES)
        return next((path for path in same if path is not None), None)

    def unused(self) -> Iterator[Problem]:
        """Pictures in formats that are not read, and masks without a picture."""
        for path in self.files:
            if path.suffix.lower() in OTHER_PICTURES:
                reason = f"{path.suffix.lower()} is not supported; convert it to JPEG, PNG or WebP"
                yield Problem(path=path, reason=reason)
        for stem in sorted(self.masks.keys() - {p.stem for p in self.pictures}):
            reason = f"is a mask and there is no picture {stem}; rename it, or remove it"
            yield Problem(path=self.masks[stem], reason=reason)


def _parts(root: Path, problems: list[Problem]) -> list[_Part]:
    """The folder itself, then its `<n>_<text>` subfolders."""
    files, subfolders = _listing(root)
    parts = [_Part(files)]
    for subfolder in subfolders:
        match = _REPEATS.fullmatch(subfolder.name)
        try:
            _confine(subfolder, root)
            inside, _ = _listing(subfolder)
            part = _Part(inside, int(match[1]) if match else 1)
            if match and not 1 <= part.repeats <= MAX_FOLDER_REPEATS:
                raise DatasetError(
                    f"the name asks for {match[1]} repeats (1 to {MAX_FOLDER_REPEATS} are possible);"
                    " rename it to 1_name"
                )
            if not match and part.pictures:
                count = len(part.pictures)
                raise DatasetError(f"is a subfolder with pictures ({count}); rename it to 1_name to use them")
        except DatasetError as e:
            problems.append(_problem(subfolder, e))
            continue
        if match:
            parts.append(part)
    for part in parts:
        problems.extend(part.unused())
    return parts


def _listing(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
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


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in SIDECAR_SUFFIXES or path.name.lower() in METADATA_NAMES


def _is_mask(path: Path) -> bool:
    return path.stem.endswith(MASK_ENDING) and path.suffix.lower() == ".png"


def _confine(path: Path, root: Path) -> None:
    """A dataset from elsewhere may hold links to private files; captions end up in the LoRA's metadata."""
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as e:
        raise DatasetError(f"{path.name}: is a broken link; replace it by the file") from e
    if not inside:
        raise DatasetError(f"{path.name}: is a link that leads out of the folder; copy the file in instead")


def _problem(path: Path, error: DatasetError) -> Problem:
    reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")
    return Problem(path=path, reason=reason)


def _read_sidecar(path: Path, root: Path, problems: list[Problem]) -> str:
    try:
        _confine(path, root)
        return read_text(path)
    except DatasetError as e:
        problems.append(_problem(path, e))
        return ""


def _read_mask(
    path: Path | None, size: tuple[int, int], root: Path, problems: list[Problem]
) -> tuple[Path | None, str]:
    """(mask, sha256 of its bytes), or (None, "") for a picture without a usable one."""
    if path is None:
        return None, ""
    try:
        _confine(path, root)
        own, digest = inspect_image(path)
        if own != size:
            raise DatasetError(
                f"{path.name}: has {own[0]}x{own[1]} and its picture {size[0]}x{size[1]}; save it at the"
                " picture's size"
            )
    except DatasetError as e:
        problem = _problem(path, e)
        problems.append(Problem(path=path, reason=f"{problem.reason} (the picture is used without a mask)"))
        return None, ""
    return path, digest


def _metadata(parts: list[_Part], root: Path, problems: list[Problem]) -> dict[Path, Described]:
    """Picture → its row, from all metadata files; the one nearest to the picture wins, then csv."""
    rows: dict[Path, Described] = {}
    for part in [*parts[1:], parts[0]]:
        files = {p.name.lower(): p for p in part.files}
        for path in (files[name] for name in METADATA_NAMES if name in files):
            try:
                _confine(path, root)
                found, skipped = read_metadata(path)
            except DatasetError as e:
                problems.append(_problem(path, e))
                continue
            problems.extend(skipped)
            for picture, row in found.items():
                rows[picture] = rows.get(picture, Described()).or_else(row)
    return rows


def _nothing_usable(root: Path, pictures: int, problems: list[Problem]) -> str:
    remedy = "put JPEG, PNG or WebP files into it"
    if problems:
        found = f"{pictures} found, none usable" if pictures else "none found"
        return f"{root}: no pictures ({found}: {shortened(map(str, problems))}); {remedy}"
    return f"{root}: the folder holds no pictures; {remedy}"
