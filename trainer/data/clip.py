"""What makes a record a clip, and which of its frames are trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..errors import DatasetError

ClipPart = Literal["start", "center", "chunks"]
CLIP_PARTS: tuple[ClipPart, ...] = ("start", "center", "chunks")
MAX_FRAMES, MAX_FPS, MAX_CHUNKS = 1025, 240, 64
StartPicture = Literal["auto", "first frame", "none"]
START_PICTURES: tuple[StartPicture, ...] = ("auto", "first frame", "none")
OWN_RATE = -1
"""The frame rate that the model was trained on."""


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
    start_picture: StartPicture = field(default="auto", repr=False)
    """What an image-to-video model is given as the first frame: a clip's control picture, or without one its
    own first frame. auto: where the network needs one, or the clip has a control picture. Not shown, for the
    records say what came of it (`Dataset.digest`)."""

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
        if self.start_picture not in START_PICTURES:
            options = ", ".join(START_PICTURES)
            raise DatasetError(f"start_picture is {self.start_picture!r}; choose one of {options}")
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
