"""How pictures are cut and sized: what the user chooses. `views` does it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ConfigError
from .buckets import MAX_ASPECT

Role = Literal["instance", "class", "validation"]
Box = tuple[float, float, float, float]

CROPS = ("focus", "center", "random", "none")
UPSCALING = ("allow", "own_size", "refuse")
STEPS = (64, 32, 16, 8)
MAX_CROPS = 16
MAX_JITTERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """Every field is part of a run's key. Raises ConfigError for what is out of range."""

    resolutions: tuple[int, ...] = ()
    """Sides of the squares whose area is trained, each picture at each of them; () is the dataset's."""
    crop: str = "focus"
    """One of CROPS. focus: as near to the middle of the record's focus box as possible, without one the
    centre. none: the shape nearest to the picture's own, so that only what rounding asks for is cut."""
    crops: int = 1
    """Random crops of a picture."""
    flip: bool = False
    """Each view is trained as it is, and mirrored."""
    jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share; 0 is off."""
    jitters: int = 1
    """Views with changed colours beside each view as it is, where `jitter` is on."""
    upscaling: str = "allow"
    """One of UPSCALING: what happens to a picture with fewer pixels than it is trained at. own_size: it is
    trained at its own. refuse: it is not trained."""
    step: int = 64
    """What the sides of buckets are multiples of, at least; see `views`."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour under what is transparent."""
    alpha_mask: bool = False
    """What is transparent counts as masked out."""
    seed: int = 0
    """Of random crops and colours."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolutions", tuple(dict.fromkeys(self.resolutions)))
        if odd := [r for r in self.resolutions if not 16 <= r <= 8192]:
            raise ConfigError(f"resolutions: {odd[0]} is out of range; use 16 to 8192")
        for name, value, allowed in (("crop", self.crop, CROPS), ("upscaling", self.upscaling, UPSCALING)):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
        for name, low, high in (("crops", 1, MAX_CROPS), ("jitters", 1, MAX_JITTERS), ("jitter", 0, 0.5)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; use {low} to {high}")
        if self.step not in STEPS:
            raise ConfigError(f"step is {self.step}; use one of {', '.join(map(str, STEPS))}")

    def sides(self, size: tuple[int, int], resolution: int) -> list[int]:
        """The resolutions that a picture of this size is trained at: as they are, or its own where they are
        larger and upscaling is not allowed. [] for a picture that is refused."""
        wanted = self.resolutions or (resolution,)
        if self.upscaling == "allow":
            return list(wanted)
        own = own_resolution(size)
        if self.upscaling == "refuse":
            return [r for r in wanted if r <= own]
        return list(dict.fromkeys(min(r, own) for r in wanted))

    def of_role(self, role: Role) -> Framing:
        """Pictures that are held out are measured as they are, without random crops, mirroring or jitter."""
        if role != "validation":
            return self
        return replace(self, crop="center" if self.crop == "random" else self.crop, flip=False, jitter=0.0)

    @property
    def variants(self) -> int:
        """Views of a picture at each resolution."""
        crops = self.crops if self.crop == "random" else 1
        return crops * (1 + self.flip) * (1 + (self.jitters if self.jitter else 0))


def own_resolution(size: tuple[int, int]) -> int:
    """The largest resolution at which a picture of (width, height) pixels is not enlarged."""
    short, long = sorted(size)
    return max(1, math.isqrt(short * min(long, int(short * MAX_ASPECT))))
