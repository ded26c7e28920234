"""Train Preview: pictures, measurements, checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..text import readable
from .checks import check_choice, check_range, demand


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveConfig:
    every: int = 100
    """Steps between checkpoints; 0 writes one only at the end and when a run is stopped."""
    keep: int = 2
    """How many states are kept."""
    keep_checkpoints: int = 0
    """LoRAs of how many checkpoints are kept: the newest, the best, and those of the states; 0 keeps all."""
    keep_every: int = 0
    """With `keep_checkpoints`, LoRAs of steps that it divides are kept too; 0: no others."""

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "every", hint="0: only at the end")
        check_range(self, 1, math.inf, "keep")
        check_range(self, 0, math.inf, "keep_checkpoints", hint="0: all")
        check_range(self, 0, math.inf, "keep_every", hint="0: no others")

    def stays(self, step: int) -> bool:
        """Whether the LoRA of this step is kept however old it is."""
        return not self.keep_checkpoints or (self.keep_every > 0 and step % self.keep_every == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig:
    """Sample pictures while a run goes on. They change nothing in the weights."""

    prompts: tuple[str, ...] = ()
    """One picture each; none means no previews."""
    negative: str = ""
    """What the pictures shall not show."""
    every: int = 100
    """Steps between previews. Step 0, the untouched model, and the last step are always shown."""
    seed: int = 0
    """Of the first prompt's picture; the next ones count up. The same at every step."""
    steps: int = 20
    """Sampling steps."""
    cfg: float = 7.0
    """Guidance scale; at 1 the negative prompt is not used."""
    sampler_name: str = "euler"
    """As ComfyUI's KSampler lists it."""
    scheduler: str = "normal"
    """As ComfyUI's KSampler lists it."""
    width: int = 0
    """Pixels; 0 is the resolution of the dataset."""
    height: int = 0
    """Pixels; 0 is the resolution of the dataset."""
    frames: int = 1
    """Of a video model: the first, the middle and the last are shown."""
    unrelated_prompts: tuple[str, ...] = ()
    """Drawn after `prompts`: of other things than the subject, by which a judge measures the drift."""

    @property
    def all_prompts(self) -> tuple[str, ...]:
        return self.prompts + self.unrelated_prompts

    def __post_init__(self) -> None:
        for name in ("prompts", "unrelated_prompts"):
            object.__setattr__(self, name, tuple(readable(p) for p in getattr(self, name)))
        object.__setattr__(self, "negative", readable(self.negative))
        check_range(self, 1, math.inf, "every")
        check_range(self, 1, 1000, "steps", hint="20 is usual")
        check_range(self, 0, 100, "cfg")
        demand(0 <= self.seed < 2**64, f"seed is {self.seed}; choose 0 to 2^64 - 1")
        check_range(self, 0, 8192, "width", "height", hint="0: the dataset's resolution")
        check_range(self, 1, 1025, "frames", hint="1: a still picture")
        demand(
            bool(self.prompts or not self.unrelated_prompts),
            "unrelated_prompts is written but prompts is empty, so no pictures are drawn; write a line into"
            " prompts",
        )


BY_LOSS, BY_JUDGE = DECIDES = ("held-out loss", "judge")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Which step is best: by the loss on pictures that are not trained on, or by a judge of the previews."""

    held_out: int = 0
    """Pictures of the dataset that are kept out of training; 0 is no validation."""
    every: int = 50
    """Steps between measurements. Step 0 and the last step are always measured."""
    keep_best: bool = False
    """The result is the LoRA of the best step instead of the last step's."""
    patience: int = 0
    """Stop after this many measurements without a new best; 0 never stops early."""
    decides: str = BY_LOSS
    """What the best step is: that with the lowest held-out loss, or that of `evidence.choice`."""
    judge: str = ""
    """Name and digest of the network that judges the previews; empty without one."""
    max_drift: float = 0.5
    """By the judge the best stays below: `evidence.choice.Bounds`."""
    max_copies: float = 0.25
    """The same, 0 to 1."""

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "held_out", hint="0: no validation")
        check_range(self, 1, math.inf, "every")
        check_range(self, 0, math.inf, "patience", hint="0: never stop early")
        check_choice("decides", self.decides, DECIDES)
        check_range(self, 0, 10, "max_drift")
        check_range(self, 0, 1, "max_copies")
        if self.decides == BY_JUDGE:
            demand(
                bool(self.judge),
                "decides is judge but there is none; connect clip_vision or name judge_folder",
            )
            return
        for name in ("keep_best", "patience"):
            value = getattr(self, name)
            demand(
                self.held_out > 0 or not value,
                f"{name} is {value} but held_out is 0, so nothing is measured; hold out one or more pictures,"
                " or let a judge decide",
            )
