"""What a dataset is: records that point at files, and the problems met while scanning."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DatasetError
from ..text import readable
from .clip import Clip
from .framing import Box, Framing, Role
from .traits import Traits


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """A picture that the network is shown beside the caption of another one."""

    path: Path
    digest: str
    """sha256 of the file's bytes, hex."""
    size: tuple[int, int]
    """(width, height) in pixels, after EXIF rotation; not that of its picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One picture or clip and its caption. Pixels stay on disk until they are needed."""

    path: Path
    caption: str
    size: tuple[int, int]
    """(width, height) in pixels, after EXIF rotation."""
    digest: str
    """sha256 of the file's bytes, hex."""
    repeats: int = 1
    role: Role = "instance"
    weight: float = 1.0
    """Factor on this picture's loss."""
    mask: Path | None = None
    """A picture whose white part is what matters; same framing as the picture. The picture's own path means
    its transparency."""
    mask_digest: str = ""
    framing: Framing = Framing()
    captions: tuple[str, ...] = ()
    """Other captions of it: each time that it is shown, `caption` or one of these is drawn."""
    focus: Box | None = None
    """(left, top, right, bottom) in the picture's pixels: what a crop keeps in view."""
    traits: Traits | None = None
    animated: bool = False
    """Whether the file has more frames; the first is used."""
    controls: tuple[Control, ...] = ()
    """In the order in which the network is given them."""
    drawn_mask: int | None = None
    """Number of the mask that is drawn for an inpaint model; see `drawn_masks`."""
    clip: Clip | None = None
    """None for a picture."""
    first_frame: bool = False
    """Whether the network is given the clip's own first frame, for want of a control picture."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", readable(self.caption))
        object.__setattr__(self, "captions", tuple(readable(c) for c in self.captions))

    @property
    def name(self) -> str:
        """Of the file, for messages."""
        return readable(self.path.name)

    @property
    def texts(self) -> tuple[str, ...]:
        """All its captions."""
        return (self.caption, *self.captions)

    @property
    def identity(self) -> str:
        """All of it that training depends on; not where it lies."""
        parts = (self.digest, self.caption, self.repeats, self.role, self.weight, self.mask_digest)
        # What was not there at first changes no digest, so that earlier runs are found.
        parts += (self.framing, self.focus) if self.framing != Framing() or self.focus else ()
        parts += (self.captions,) if self.captions else ()
        if self.controls or self.drawn_mask is not None:
            parts += ([c.digest for c in self.controls], self.drawn_mask)
        parts += (self.clip,) if self.clip else ()
        parts += ("first frame",) if self.first_frame else ()
        return "\0".join(map(str, parts))

    def with_caption(self, caption: str, *others: str) -> ImageRecord:
        """With these captions and no other."""
        return replace(self, caption=caption, captions=others)

    def views_at(self, resolution: int) -> int:
        """How many views of it are trained, in a dataset of this resolution; `views.views` gives them."""
        pictures = len(self.framing.sides(self.size, resolution)) * self.framing.of_role(self.role).variants
        return pictures * max(1, len(self.clip.spans) if self.clip else 1)

    def with_role(self, role: Role) -> ImageRecord:
        return replace(self, role=role)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A file that was skipped, or is not used as it could be, and why."""

    path: Path
    reason: str
    skipped: bool = True

    def __str__(self) -> str:
        return readable(f"{self.path.name}: {self.reason}")


class UnreadFolder(Problem):
    """A subfolder with pictures that is not read."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """An ordered set of records, for training at `resolution` squared pixels."""

    records: tuple[ImageRecord, ...]
    problems: tuple[Problem, ...] = ()
    resolution: int = 512
    trigger: str = ""
    """The word that captions use for what is learned, as Caption Images was told; no part of `digest`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "trigger", readable(self.trigger))

    def __len__(self) -> int:
        return len(self.records)

    def with_records(self, records: Iterable[ImageRecord]) -> Dataset:
        return replace(self, records=tuple(records))

    def hold_out(self, count: int) -> Dataset:
        """`count` of the instance pictures become validation pictures: those with the lowest digests, so that
        the choice is blind to names and stays the same when pictures are added."""
        instances = sorted((r for r in self.records if r.role == "instance"), key=lambda r: r.digest)
        if count >= len(instances) > 0:
            raise DatasetError(
                f"held_out is {count} but the dataset has {len(instances)} pictures; hold out fewer"
            )
        chosen = {r.digest for r in instances[:count]}
        return self.with_records(
            r.with_role("validation") if r.role == "instance" and r.digest in chosen else r
            for r in self.records
        )

    @property
    def texts(self) -> Iterator[tuple[str, str]]:
        """All that was written by hand, with a name for messages."""
        yield "trigger", self.trigger
        yield from ((f"caption of {r.name}", text) for r in self.records for text in r.texts)

    @property
    def shown(self) -> int:
        """Pictures in an epoch of training."""
        return sum(r.repeats * r.views_at(self.resolution) for r in self.records if r.role == "instance")

    @property
    def digest(self) -> str:
        """Changes when a picture, a control picture, a caption, the order, repeats, roles, framing or the
        resolution changes."""
        h = hashlib.sha256(f"{self.resolution}".encode())
        for r in self.records:
            h.update(f"\0{r.identity}".encode())
        return h.hexdigest()
