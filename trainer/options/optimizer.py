"""Train Optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import check_choice, check_positive, check_range, demand

OPTIMIZERS = (
    "adamw",
    "adamw8bit",
    "adafactor",
    "lion",
    "prodigy",
    "schedule_free_adamw",
    "lion8bit",
    "muon",
    "came",
    "ademamix",
    "adan",
    "adopt",
    "stable_adamw",
    "prodigy_plus",
)
RATE_FOUND = ("prodigy", "prodigy_plus")
"""These find the learning rate and multiply it by what is set."""
OWN_BETAS = ("came", "ademamix", "adan", "adopt", "stable_adamw", "prodigy_plus")
"""These have betas and eps of their own, whatever is set."""
SCHEDULES = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    name: str = "adamw"
    """One of OPTIMIZERS."""
    learning_rate: float = 1e-4
    """Highest rate of the run."""
    text_encoder_lr: float = 0.0
    """Learning rate of a LoRA on the text encoder; 0 leaves the text encoder frozen."""
    weight_decay: float = 0.01
    """Decoupled, as in AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of gradient and squared gradient; lion has its own second one."""
    eps: float = 1e-8
    """Added to the root of the squared gradient."""
    lora_plus_ratio: float = 1.0
    """LoRA+: B learns this many times faster than A (16 in Hayou et al. 2024)."""
    schedule: str = "cosine"
    """One of SCHEDULES: the learning rate after the warm-up."""
    warmup_steps: int = -1
    """Steps of linear warm-up; -1 means 5 % of the run, at most 100."""
    cycles: int = 1
    """Restarts of "cosine_with_restarts"."""
    power: float = 1.0
    """Exponent of "polynomial"."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this L2 norm over all adapter weights; 0 switches clipping off."""
    accumulation: int = 1
    """Batches whose gradients are averaged into one optimizer step."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the adapter weights; 0 is off."""
    save_ema: bool = True
    """With EMA: save the averaged weights instead of the last ones."""

    def __post_init__(self) -> None:
        check_choice("optimizer", self.name, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        # Prodigy is run at 1; nothing sensible lies above.
        check_range(self, 0, 1, "learning_rate", "text_encoder_lr", hint="1e-4 is usual")
        check_range(self, 0, math.inf, "weight_decay", "max_grad_norm")
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        demand(in_range, f"betas are {self.betas}; choose two numbers from 0 to below 1")
        check_range(self, -1, math.inf, "warmup_steps", hint="-1: automatic")
        check_range(self, 1, 4096, "accumulation")
        demand(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; choose 0 (off) to 0.9999")
        check_positive(self, "eps", "lora_plus_ratio", "power")
        check_range(self, 1, math.inf, "cycles")

    def warmup_for(self, steps: int) -> int:
        return min(100, steps // 20) if self.warmup_steps < 0 else self.warmup_steps
