"""Train Objective and Prior Preservation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..text import readable
from .checks import check_choice, check_positive, check_range, demand

TIMESTEP_SAMPLINGS = (
    "auto",
    "uniform",
    "logit_normal",
    "sigmoid",
    "shift",
    "resolution_shift",
    "flux_shift",
    "mode",
    "cosmap",
)
WEIGHTINGS = ("none", "min_snr", "debiased_kohya", "debiased_onetrainer", "sigma_sqrt", "cosmap")
LOSSES = ("mse", "huber", "l1")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
PRIOR_METHODS = ("none", "class_images", "class_images_base_target", "output_preservation")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    timestep_sampling: str = "auto"
    """Distribution of noise levels; "auto" is uniform, for flow models with the model's own shift."""
    t_min: float = 0.0
    """Lowest time fraction that is trained; 0 is the clean picture."""
    t_max: float = 1.0
    """Highest time fraction that is trained; 1 is noise."""
    shift: float = 0.0
    """Time shift s of "shift" and "resolution_shift"; 0 is the model's own. Other methods: 0 is none."""
    logit_mean: float = 0.0
    """Mean m of "logit_normal"; below 0 trains cleaner pictures more."""
    logit_std: float = 1.0
    """Standard deviation of "logit_normal"."""
    sigmoid_scale: float = 1.0
    """Factor on the normal draw of "sigmoid", "shift" and "resolution_shift"."""
    mode_scale: float = 1.29
    """Scale s of "mode": -1 to 2/(π − 2), where the density stays positive (Esser et al. 2024, eq. 20)."""
    weighting: str = "none"
    """Weight of the loss along the noise schedule; see `trainer.loss.loss_weight`."""
    min_snr_gamma: float = 5.0
    """γ of "min_snr": the signal-to-noise ratio from which on weights fall."""
    loss: str = "mse"
    """One of LOSSES: the distance d of an element."""
    huber_c: float = 0.1
    """Where "huber" turns from a square into a line."""
    huber_schedule: str = "snr"
    """How huber_c follows the noise level; one of HUBER_SCHEDULES."""
    noise_offset: float = 0.0
    """Standard deviation of a noise that is constant over each channel (0.05 to 0.1 is usual)."""
    input_perturbation: float = 0.0
    """Extra noise in the network's input that the target does not see (0.1 is usual)."""
    caption_dropout: float = 0.0
    """Share of draws that see the empty caption."""
    guidance: float = 1.0
    """Guidance embedding of models that were distilled with one (Flux); others keep their own value."""
    masked: bool = True
    """Weight the loss by the picture's mask where it has one."""
    unmasked_weight: float = 0.1
    """Weight of what lies outside the mask."""
    tag_shuffle: bool = False
    """Show the tags of a caption, which commas divide, in another order each time."""
    keep_tags: int = 1
    """Tags at a caption's beginning that tag_shuffle and tag_dropout leave where they are."""
    tag_dropout: float = 0.0
    """Share of the other tags that is left out, drawn anew each time."""
    caption_variants: int = 8
    """Texts of a picture that are encoded beforehand, where its caption varies; a text encoder that trains
    gets a new one each time."""
    own_loss: str = ""
    """Name of a loss function that Python code gives (`trainer.own_loss`); it replaces `loss`. Empty and a
    function given: its name and a digest of its source."""

    def __post_init__(self) -> None:
        check_choice("timestep_sampling", self.timestep_sampling, TIMESTEP_SAMPLINGS)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_choice("loss", self.loss, LOSSES)
        check_choice("huber_schedule", self.huber_schedule, HUBER_SCHEDULES)
        demand(
            0 <= self.t_min < self.t_max <= 1,
            f"t_min is {self.t_min} and t_max is {self.t_max}; choose 0 <= t_min < t_max <= 1",
        )
        check_range(self, 0, 1, "caption_dropout", "unmasked_weight", "tag_dropout")
        check_range(self, 0, 1000, "keep_tags")
        check_range(self, 1, 1000, "caption_variants", hint="8 is usual")
        check_range(self, 0, math.inf, "shift", "noise_offset", "input_perturbation", "guidance")
        check_range(self, -100, 100, "logit_mean")
        check_range(self, -1, 1.75, "mode_scale")
        check_positive(self, "min_snr_gamma", "huber_c", "logit_std", "sigmoid_scale")


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """How the class is kept while its member is learned; formulas in `trainer.step`."""

    method: str = "none"
    """One of PRIOR_METHODS."""
    weight: float = 1.0
    """Factor on the prior, which is added to the loss."""
    class_prompt: str = ""
    """Prompt of class pictures that are made, and of output preservation: what is kept."""
    class_images: int = 100
    """Class pictures wanted; what the dataset lacks is sampled from the class prompt by the base."""
    steps: int = 20
    """Sampling steps of class pictures that are made."""
    cfg: float = 7.0
    """Guidance scale of class pictures that are made."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_prompt", readable(self.class_prompt))
        check_choice("method", self.method, PRIOR_METHODS)
        check_range(self, 0, math.inf, "weight", hint="1 is usual")
        check_range(self, 0, 10_000, "class_images")
        check_range(self, 1, 1000, "steps", hint="20 is usual")
        check_range(self, 0, 100, "cfg")
        if self.method == "output_preservation":
            demand(
                bool(self.class_prompt.strip()),
                "output preservation needs a class_prompt, for example 'a photo of a figurine'",
            )

    @property
    def uses_pictures(self) -> bool:
        return self.weight > 0 and self.method.startswith("class_images")

    @property
    def preserves_output(self) -> bool:
        return self.weight > 0 and self.method == "output_preservation"
