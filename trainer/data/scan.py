"""From a folder to a dataset.

Read are the pictures directly in the folder, and those in subfolders named like `10_cat`, which show
each picture ten times an epoch (kohya's layout); other subfolders when asked. `layouts` knows what else a
path can be. A picture's caption is, in this order: the .txt file of the same name, the .caption file, its
row in metadata.csv, metadata.jsonl or metadata.parquet. The metadata may also give it a weight and a focus.
`cat-masklabel.png` is the mask of cat.jpg (OneTrainer's name), and so is a picture `cat` in the subfolder
`masks` or in a mask folder. `cat-control.png` is what an edit model is shown beside its caption: see
`controls`.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from ..errors import DatasetError, shortened
from .clip import CLIPS, Clip, ClipOptions
from .clips import CLIP_SUFFIXES, state
from .controls import ControlFinder
from .formats import OTHER_PICTURES
from .formats import SUFFIXES as IMAGE_SUFFIXES
from .framing import Framing
from .images import Examined, examine
from .layouts import sources
from .layouts.archive import archive_fingerprint, check_archive, is_archive
from .layouts.source import Source
from .metadata import METADATA_NAMES, SIDECAR_SUFFIXES, Described, read_metadata, read_text
from .parts import Part, confine, parts_of, problem_of
from .pixels import inspect
from .records import Dataset, ImageRecord, Problem, Role, UnreadFolder

MAX_THREADS = 4
"""That decode at once: each may need 128 million pixels of memory."""

Seen = tuple[Examined, "Clip | None"]


def scan_folder(
    folder: str | os.PathLike[str],
    *,
    resolution: int = 512,
    repeats: int = 1,
    role: Role = "instance",
    on_file: Callable[[int, int], None] | None = None,
    framing: Framing | None = None,
    subfolders: bool = False,
    mask_folder: Path | None = None,
    control_folders: Sequence[Path] = (),
    clips: ClipOptions = CLIPS,
) -> Dataset:
    """All usable pictures of a folder in natural order (img2 before img10); those in subfolders come last.

    What is skipped is named in `problems`. `on_file(done, total)` is called before each picture.
    framing: of all pictures, where the layout does not say otherwise. subfolders: read whatever their names.
    mask_folder: with masks of the same names. control_folders: with control pictures of the same stems.
    Raises DatasetError if the folder cannot be read or holds no usable picture.
    """
    root = Path(folder)
    problems: list[Problem] = []
    read = [
        (source, parts_of(source, problems, mask_folder, control_folders))
        for source in sources(root, problems, subfolders=subfolders)
    ]
    total = sum(len(part.pictures) for _, parts in read for part in parts)
    records: list[ImageRecord] = []
    done = 0

    def count() -> None:
        nonlocal done
        if on_file is not None:
            on_file(done, total)
        done += 1

    for source, parts in read:
        own = replace(framing or Framing(), **source.framing)
        folders = (*control_folders, *source.control_folders)
        records += _records(source, parts, own, folders, clips, problems, count)
    records = [replace(r, repeats=r.repeats * repeats, role=_role(r, role)) for r in records]
    if not records:
        raise DatasetError(_nothing_usable(root, total, problems))
    return Dataset(records=tuple(records), problems=tuple(problems), resolution=resolution)


def _role(record: ImageRecord, wanted: Role) -> Role:
    """A folder of the class is of the class, whatever its layout says."""
    return record.role if wanted == "instance" else wanted


def _records(
    source: Source,
    parts: list[Part],
    framing: Framing,
    control_folders: Sequence[Path],
    clips: ClipOptions,
    problems: list[Problem],
    count: Callable[[], None],
) -> list[ImageRecord]:
    root = source.folder
    listed = _metadata(parts, root, problems)
    finder = ControlFinder(root, control_folders, listed, suffixes=IMAGE_SUFFIXES, confine=confine)
    records: list[ImageRecord] = []
    every = [(part, path) for part in parts for path in part.pictures]
    pictures = [(part, path) for part, path in every if path not in finder.named]
    for _ in range(len(every) - len(pictures)):
        count()
    # Closed also when `count` raises: a traceback would keep the threads at work.
    with closing(_examined([path for _, path in pictures], root, clips)) as looks:
        for (part, path), seen in zip(pictures, looks, strict=True):
            count()
            row = listed.pop(path, Described())
            try:
                found, clip = seen()
            except DatasetError as e:
                problems.append(problem_of(path, e))
                continue
            mask, mask_digest = _read_mask(part, path, found, framing, root, problems)
            records.append(
                ImageRecord(
                    path=path,
                    caption=source.worded(_caption(part, path, row, source, problems)),
                    size=found.size,
                    digest=found.digest,
                    repeats=part.repeats * source.repeats,
                    role=source.role or "instance",
                    weight=(row.weight or 1.0) * source.weight,
                    mask=mask,
                    mask_digest=mask_digest,
                    framing=framing,
                    focus=row.focus_in(found.size),
                    traits=found.traits,
                    animated=found.animated,
                    clip=clip,
                    controls=finder.of(path, part.controls.get(path.stem, ()), row),
                )
            )
    finder.check(records)
    kept = [p for p in problems if not (isinstance(p, UnreadFolder) and p.path in finder.places)]
    problems[:] = kept + finder.problems
    if listed:
        names = shortened(p.relative_to(root).as_posix() for p in listed)
        reason = f"metadata names pictures that are not there: {names}"
        problems.append(Problem(path=root, reason=reason, skipped=False))
    return records


def _examined(paths: Sequence[Path], root: Path, clips: ClipOptions) -> Generator[Callable[[], Seen]]:
    """For each picture what gives what was found of it, or raises: a few threads decode a little ahead."""

    def look(path: Path) -> Seen:
        confine(path, root)
        return inspect(path, clips)

    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "in-graph-lora-scan")
    waiting = deque[Future[Seen]]()
    try:
        for path in paths:
            waiting.append(pool.submit(look, path))
            if len(waiting) > 2 * MAX_THREADS:
                yield waiting.popleft().result
        for found in waiting:
            yield found.result
    finally:
        pool.shutdown(cancel_futures=True)


def check_folder(folder: str | os.PathLike[str], *, subfolders: bool = False) -> None:
    """Raises DatasetError if the folder or archive cannot be read or holds no file named like a picture."""
    root = Path(folder)
    if is_archive(root):
        check_archive(root)
        return
    problems: list[Problem] = []
    found = sources(root, problems, subfolders=subfolders)
    if not any(part.pictures for source in found for part in parts_of(source, problems)):
        raise DatasetError(_nothing_usable(root, 0, problems))


def folder_fingerprint(folder: str | os.PathLike[str], *, subfolders: bool = False) -> str:
    """Changes when a picture's name, size or time, or the text of a caption changes. Decodes nothing.

    Raises DatasetError if the folder cannot be read.
    """
    root = Path(folder)
    if is_archive(root):
        return archive_fingerprint(root)
    h = hashlib.sha256(os.fsencode(root.absolute()))
    for source in sources(root, [], subfolders=subfolders):
        h.update(b"\0" + os.fsencode(source.folder.absolute()) + str(source).encode("utf-8", "replace"))
        parts = parts_of(source, [])
        for part in parts:
            for path in (*part.files, *part.mask_files, *part.shared_masks):
                _add_file(h, path, source)
        for folder in source.control_folders:
            h.update(folder_fingerprint(folder, subfolders=True).encode())
        for row in _metadata(parts, source.folder, []).values():
            for path in row.controls:
                with suppress(OSError):
                    info = path.stat()
                    h.update(os.fsencode(path) + f"\0{info.st_size}\0{info.st_mtime_ns}".encode())
    return h.hexdigest()


def _add_file(h: hashlib._Hash, path: Path, source: Source) -> None:
    metadata = path.name.lower() in METADATA_NAMES
    captions = {*SIDECAR_SUFFIXES, *source.caption_suffixes}
    text = path.suffix.lower() in captions or (metadata and path.suffix.lower() != ".parquet")
    if not (text or metadata) and path.suffix.lower() not in IMAGE_SUFFIXES | OTHER_PICTURES | CLIP_SUFFIXES:
        return
    h.update(b"\0" + os.fsencode(path))
    try:
        confine(path, path.parent if path.parent == source.mask_folder else source.folder)
        size, changed = state(path)
        h.update(f"\0{size}\0{changed}".encode())
        if text:
            h.update(read_text(path).encode("utf-8", "surrogatepass"))
    except (DatasetError, OSError) as e:
        h.update(f"\0{e}".encode("utf-8", "surrogateescape"))


def _caption(part: Part, picture: Path, row: Described, source: Source, problems: list[Problem]) -> str:
    if source.caption_from == "given":
        return source.caption
    if source.caption_from == "name":
        return picture.stem.replace("_", " ").strip()
    path = part.sidecar(picture)
    if path is None:
        return row.caption or source.caption
    try:
        confine(path, source.folder)
        return read_text(path) or source.caption
    except DatasetError as e:
        problems.append(problem_of(path, e))
        return ""


def _read_mask(
    part: Part,
    picture: Path,
    found: Examined,
    framing: Framing,
    root: Path,
    problems: list[Problem],
) -> tuple[Path | None, str]:
    """(mask, sha256 of its bytes), or (None, "") for a picture without a usable one."""
    path = part.masks.get(picture.stem)
    if path is None:
        return (picture, found.digest) if framing.alpha_mask and found.transparent else (None, "")
    try:
        if path in part.files:
            confine(path, root)
        else:
            confine(path, path.parent)
        own = examine(path)
        if own.size != found.size:
            raise DatasetError(
                f"{path.name}: has {own.size[0]}x{own.size[1]} and its picture"
                f" {found.size[0]}x{found.size[1]}; save it at the picture's size"
            )
    except DatasetError as e:
        problem = problem_of(path, e)
        problems.append(Problem(path=path, reason=f"{problem.reason} (the picture is used without a mask)"))
        return None, ""
    return path, own.digest


def _metadata(parts: list[Part], root: Path, problems: list[Problem]) -> dict[Path, Described]:
    """Picture → its row, from all metadata files; the one nearest to the picture wins, then csv."""
    rows: dict[Path, Described] = {}
    for part in [*parts[1:], parts[0]]:
        files = {p.name.lower(): p for p in part.files}
        for path in (files[name] for name in METADATA_NAMES if name in files):
            try:
                confine(path, root)
                found, skipped = read_metadata(path)
            except DatasetError as e:
                problems.append(problem_of(path, e))
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
