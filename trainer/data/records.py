"""What a dataset is: records that point at files, and the problems met while scanning."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import DatasetError
from ..text import readable

Role = Literal["instance", "class", "validation"]
ClipPart = Literal["start", "center", "chunks"]
CLIP_PARTS: tuple[ClipPart, ...] = ("start", "center", "chunks")
MAX_FRAMES, MAX_FPS, MAX_CHUNKS = 1025, 240, 64
OWN_RATE = -1
"""The frame rate that the model was trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """How pictures are cut and sized; `views` follows it."""

    resolutions: tuple[int, ...] = ()
    """Sides of the squares whose area is trained, one after the other; () is the dataset's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipOptions:
    """Which frames of clips are trained."""

    frames: int = 33
    """Frames that are trained at once, at most; the VAE's own step rounds it down. 1 to MAX_FRAMES."""
    fps: float = OWN_RATE
    """Frames a second that are trained: OWN_RATE is the model's own, 0 the clip's own."""
    part: ClipPart = "center"
    """Of a clip that is longer: its beginning, its middle, or `chunks` parts spread over it."""
    chunks: int = 2
    """Parts of a long clip, each a sample of its own; no more than fit without overlap."""
    gifs: bool = False
    """GIF animations are clips."""

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= MAX_FRAMES:
            raise DatasetError(f"frames is {self.frames}; choose 1 to {MAX_FRAMES}")
        if not (self.fps == OWN_RATE or 0 <= self.fps <= MAX_FPS):
            raise DatasetError(
                f"fps is {self.fps:g}; choose {OWN_RATE} (the model's own), 0 (the clip's own) or up to"
                f" {MAX_FPS}"
            )
        if self.part not in CLIP_PARTS:
            raise DatasetError(f"part is {self.part!r}; choose one of {', '.join(CLIP_PARTS)}")
        if not 1 <= self.chunks <= MAX_CHUNKS:
            raise DatasetError(f"chunks is {self.chunks}; choose 1 to {MAX_CHUNKS}")


CLIPS = ClipOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """`frames` pictures of a clip, `1 / fps` seconds apart."""

    start: float
    """Seconds after the clip's first frame."""
    frames: int
    fps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """What makes a record a clip."""

    frames: int
    fps: float
    """Frames a second on average; 0 for a folder of frames, which has no rate of its own."""
    options: ClipOptions = CLIPS
    spans: tuple[Span, ...] = ()
    """The parts that are trained; () until the model is known (`clip_spans.fitted`)."""


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
    """A picture whose white part is what matters; same framing as the picture."""
    mask_digest: str = ""
    framing: Framing = Framing()
    clip: Clip | None = None
    """None for a picture."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", readable(self.caption))

    @property
    def shown(self) -> int:
        """Samples in an epoch."""
        parts = len(self.clip.spans) if self.clip else 1
        return self.repeats * max(1, len(self.framing.resolutions)) * max(1, parts)

    @property
    def name(self) -> str:
        """Of the file, for messages."""
        return readable(self.path.name)

    def with_caption(self, caption: str) -> ImageRecord:
        return replace(self, caption=caption)

    def with_role(self, role: Role) -> ImageRecord:
        return replace(self, role=role)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A file that was skipped, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return readable(f"{self.path.name}: {self.reason}")


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
        yield from ((f"caption of {r.name}", r.caption) for r in self.records)

    @property
    def shown(self) -> int:
        """Samples in an epoch of training."""
        return sum(r.shown for r in self.records if r.role == "instance")

    @property
    def digest(self) -> str:
        """Changes when a picture, a caption, the order, repeats, roles or the resolution changes."""
        h = hashlib.sha256(f"{self.resolution}".encode())
        for r in self.records:
            parts: tuple[object, ...] = (
                r.digest,
                r.caption,
                r.repeats,
                r.role,
                r.weight,
                r.mask_digest,
                r.framing,
            )
            parts += (r.clip,) if r.clip else ()
            h.update("\0".join(["", *map(str, parts)]).encode())
        return h.hexdigest()
