"""The held-out loss: a fixed measure of how well pictures are predicted that are not trained on.

Mean over the held-out pictures, and over STRATA noise levels each, of the squared error in the model's own
target space, without weighting. Levels and noise are the same at every step and lie in the middle of equal
parts of the model's own schedule, so the curve has no sampling noise, and runs of different objectives can
be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import ObjectiveConfig, ValidationConfig
from ..data.batches import Sample
from ..events import Validated
from ..loss import sample_loss
from ..noise import add_noise
from ..objective import ConditionOf, Objective, cached_condition
from ..ports import Denoiser
from ..rng import stream
from ..timesteps import sigma_from_uniform

STRATA = 8


def held_out_loss(objective: Objective, samples: Sequence[Sample], seed: int, batch_size: int) -> float:
    """Measured with the weights that are in the network now; `batch_size` bounds the memory."""
    with objective.adapter.evaluating():
        levels = level_losses(objective.denoiser, samples, seed, batch_size, objective.condition_of)
    return float(levels.sum() / levels.numel())


@torch.no_grad()
def level_losses(
    denoiser: Denoiser,
    samples: Sequence[Sample],
    seed: int,
    batch_size: int,
    condition_of: ConditionOf = cached_condition,
) -> Tensor:
    """[samples, STRATA] on the CPU: the loss of each picture at each noise level, little noise first."""
    device = denoiser.device
    losses = []
    for i, stored in enumerate(samples):
        sample = stored.load()
        x_0 = sample.latent.expand(STRATA, *sample.latent.shape)
        noise = torch.randn(x_0.shape, generator=stream(seed, "validation", i))
        u = (torch.arange(STRATA) + 0.5) / STRATA
        tokens = sample.latent[0].numel() / denoiser.process.tokens.patch**2
        sigma = sigma_from_uniform(u, ObjectiveConfig(), denoiser.process, tokens)
        noised = add_noise(denoiser.process, x_0.to(device), noise.to(device), sigma.to(device))
        condition = condition_of(sample, False)
        for part in torch.arange(STRATA).split(batch_size):
            part = part.to(device)
            x_t, conditions = noised.x_t[part], [condition] * len(part)
            output = denoiser.predict(x_t, noised.sigma[part], conditions)
            difference = (output - noised.target[part]).square()
            losses.append(sample_loss(difference, denoiser.drawn(x_t, conditions)))
    return torch.cat(losses).reshape(len(samples), STRATA).cpu()


class Validation:
    """When the held-out loss is measured, and what its values so far decide."""

    def __init__(self, config: ValidationConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        self.measured: dict[int, float] = {}

    def due(self, step: int) -> bool:
        """At step 0, every `every` steps and at the last one; never twice at one step."""
        wanted = step % self.config.every == 0 or step == self.steps
        return self.config.held_out > 0 and wanted and step not in self.measured

    def add(self, step: int, loss: float) -> Validated:
        self.measured[step] = loss if math.isfinite(loss) else math.inf
        return Validated(step=step, loss=loss, best=self.best_step == step)

    @property
    def best_step(self) -> int | None:
        """The first step with the lowest loss. The untouched model of step 0 is no result to keep."""
        trained = {step: loss for step, loss in self.measured.items() if step > 0}
        return min(trained, key=lambda step: (trained[step], step)) if trained else None

    @property
    def exhausted(self) -> bool:
        """`patience` measurements in a row, step 0 included, brought no new lowest loss."""
        if not self.config.patience or not self.measured:
            return False
        best = min(self.measured, key=lambda step: (self.measured[step], step))
        return sum(step > best for step in self.measured) >= self.config.patience

    def kept(self, step: int) -> str:
        return f"kept the LoRA of step {step}, which has the lowest held-out loss"

    def spent(self, step: int) -> str:
        patience = self.config.patience
        return f"stopped early at step {step}: {patience} measurements without a lower held-out loss"
