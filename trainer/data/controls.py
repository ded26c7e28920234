"""Control pictures: what the network is shown beside the caption, such as the picture before an edit.

A picture's control pictures are, in this order: `name-control.png` (or OneTrainer's `name-condlabel.png`),
`name-control-1.png`, … beside it; the pictures of its stem in each control folder; the files under
`control_path` in its metadata.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import DatasetError, shortened
from .images import inspect_image
from .metadata import Described
from .records import Control, ImageRecord, Problem

_ENDING = re.compile(r"(.+)-(?:control(?:-([0-9]{1,6}))?|condlabel)", re.DOTALL)

Confine = Callable[[Path, Path], None]
"""(file, folder): raises DatasetError for a link that leads out of the folder."""


def controls_beside(pictures: Iterable[Path]) -> dict[str, list[Path]]:
    """Stem of a picture → its control pictures in order, of the pictures of one folder.

    A picture that is only named like one, for want of another with the stem, is a picture like any other.
    """
    pictures = list(pictures)
    stems = {p.stem for p in pictures}
    found = [(int(m[2] or 0), p, m[1]) for p in pictures if (m := _ENDING.fullmatch(p.stem))]
    beside: dict[str, list[Path]] = {}
    for _, path, stem in sorted(found, key=lambda f: f[0]):
        if stem in stems:
            beside.setdefault(stem, []).append(path)
    return beside


def alone(pictures: Iterable[Path]) -> Iterator[Problem]:
    """What is named like a control picture of a picture that is not there."""
    pictures = list(pictures)
    stems = {p.stem for p in pictures}
    for path in pictures:
        if (match := _ENDING.fullmatch(path.stem)) and match[1] not in stems:
            yield Problem(
                path=path,
                reason=f"is named like a control picture and there is no picture {match[1]} beside it; it is"
                " used as a picture, rename it if it is none",
            )


class ControlFinder:
    """The control pictures of the pictures of one dataset."""

    def __init__(
        self,
        root: Path,
        folders: Sequence[Path],
        rows: Mapping[Path, Described],
        *,
        suffixes: frozenset[str],
        confine: Confine,
    ) -> None:
        """folders: with pictures of the same stems. rows: what metadata says. suffixes: of pictures.

        Raises DatasetError for a folder that cannot be read.
        """
        self.root, self.folders, self.suffixes, self.confine = root, folders, suffixes, confine
        self.named = {path for row in rows.values() for path in row.controls}
        """Files that metadata names: they are no pictures of their own."""
        self.problems: list[Problem] = []
        self._listings: dict[Path, dict[str, list[Path]]] = {}
        for folder in folders:
            if not folder.is_dir():
                raise DatasetError(f"{folder}: there is no such control folder; check the path")
            self._listed(folder)

    @property
    def places(self) -> set[Path]:
        """Folders that hold control pictures."""
        return {*self.folders, *(path.parent for path in self.named)}

    def of(self, picture: Path, beside: Iterable[Path], row: Described) -> tuple[Control, ...]:
        """beside: those that lie beside the picture. What cannot be used goes to `problems`."""
        found = [*((path, self.root) for path in beside), *self._in_folders(picture)]
        found += [(path, self.root) for path in row.controls]
        controls = []
        for path, root in found:
            try:
                self.confine(path, root)
                size, digest = inspect_image(path)
            except DatasetError as error:
                reason = str(error).removeprefix(f"{path.name}: ")
                self.problems.append(
                    Problem(path=path, reason=f"{reason} (a control picture of {picture.name}, left out)")
                )
                continue
            controls.append(Control(path=path, digest=digest, size=size))
        return tuple(controls)

    def check(self, records: Sequence[ImageRecord]) -> None:
        """Notes which pictures lack what others have, and which control pictures belong to none."""
        without = [r.name for r in records if not r.controls]
        if without and len(without) < len(records):
            names = shortened(without)
            reason = (
                f"{len(without)} of {len(records)} pictures have no control picture: {names}; a model that"
                " needs one leaves them out, others are trained on them without"
            )
            self.problems.append(Problem(path=self.root, reason=reason))
        taken = {c.path for r in records for c in r.controls} | {p.path for p in self.problems}
        for folder, listing in self._listings.items():
            if unused := sorted(p.name for same in listing.values() for p in same if p not in taken):
                reason = f"control pictures that belong to no picture: {shortened(unused)}; name them like it"
                self.problems.append(Problem(path=folder, reason=reason))

    def _in_folders(self, picture: Path) -> Iterator[tuple[Path, Path]]:
        """(file, control folder): the first of the stem in each folder, in the same subfolder if there is."""
        inside = picture.parent.relative_to(self.root)
        for folder in self.folders:
            places = dict.fromkeys((folder / inside, folder))
            same = next((s for p in places if (s := self._listed(p).get(picture.stem))), [])
            if same:
                yield same[0], folder

    def _listed(self, folder: Path) -> dict[str, list[Path]]:
        """Stem → its pictures in a folder; nothing for a folder that is not there."""
        if folder not in self._listings:
            listing: dict[str, list[Path]] = {}
            try:
                files = sorted(folder.iterdir()) if folder.is_dir() else []
            except OSError as e:
                why = (e.strerror or str(e)).lower()
                raise DatasetError(f"{folder}: cannot be read ({why}); check its permissions") from e
            for path in files:
                if path.suffix.lower() in self.suffixes and not path.name.startswith("."):
                    listing.setdefault(path.stem, []).append(path)
            self._listings[folder] = listing
        return self._listings[folder]
