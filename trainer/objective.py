"""What is minimised: noise, predict, loss.

The loss of a batch is mean(instance) + w · prior, where prior is, by `PriorConfig.method`:

    class_images               mean over class pictures, with their own noise and time (DreamBooth, Ruiz et
                               al. 2023; diffusers' train_dreambooth_lora: a sum, not renormalised)
    class_images_base_target   the same, with the untouched model's prediction as target
    output_preservation        MSE(with adapter, untouched), both at the batch's x_t with the class prompt
                               (differential output preservation)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapters.inject import Adapter
from .config import ObjectiveConfig, PriorConfig
from .data.batches import CachedSample, Elsewhere, MicroBatch, same_shape_groups
from .embedding import Embedding
from .loss import element_loss, huber_threshold, loss_weight, sample_loss
from .noise import Noised, add_noise
from .own_loss import LossFunction, own_element_loss
from .ports import Conditioning, Denoiser
from .timesteps import draw_sigma

ConditionOf = Callable[[CachedSample, bool], Conditioning]
"""(sample, caption dropped) → its condition; with a trained text encoder this encodes the caption anew."""


def cached_condition(sample: CachedSample, dropped: bool) -> Conditioning:
    return sample.empty if dropped else sample.conditioning


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What is random about a group, on the CPU."""

    sigma: Tensor
    noise: Tensor
    input_noise: Tensor | None
    dropped: Tensor

    def of(self, places: Sequence[int]) -> Draws:
        return Draws(
            sigma=self.sigma[places],
            noise=self.noise[places],
            input_noise=None if self.input_noise is None else self.input_noise[places],
            dropped=self.dropped[places],
        )


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A group of samples of one shape with its noise."""

    noised: Noised
    conditioning: list[Conditioning]
    weight: Tensor
    """[B]: picture's weight times the weighting of the noise level."""
    mask: Tensor | None
    threshold: Tensor
    """[B]: c of the Huber loss."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised, on one model."""

    config: ObjectiveConfig
    prior: PriorConfig
    denoiser: Denoiser
    adapter: Adapter
    condition_of: ConditionOf = cached_condition
    embedding: Embedding | None = None
    own_loss: LossFunction | None = None
    """In place of `config.loss`."""

    def draws(self, group: Sequence[CachedSample | Elsewhere], generator: torch.Generator) -> Draws:
        """All random draws of a group, on the CPU, in a fixed order."""
        config, process = self.config, self.denoiser.process
        shape = (len(group), *group[0].bucket)
        tokens = math.prod(shape[2:]) / process.tokens.patch**2
        sigma = draw_sigma(process, config, len(group), tokens, generator)
        noise = torch.randn(shape, generator=generator)
        if config.noise_offset:
            channels = (*shape[:2], *[1] * (len(shape) - 2))
            noise += config.noise_offset * torch.randn(channels, generator=generator)
        input_noise = None
        if config.input_perturbation:
            input_noise = noise + config.input_perturbation * torch.randn(shape, generator=generator)
        dropped = torch.zeros(len(group), dtype=torch.bool)
        if config.caption_dropout:
            dropped = torch.rand(len(group), generator=generator) < config.caption_dropout
        return Draws(sigma=sigma, noise=noise, input_noise=input_noise, dropped=dropped)

    def draw(self, group: Sequence[CachedSample], generator: torch.Generator) -> Drawn:
        """The group with draws of its own."""
        return self.with_draws(group, self.draws(group, generator))

    def with_draws(self, group: Sequence[CachedSample], draws: Draws) -> Drawn:
        config, process, sigma = self.config, self.denoiser.process, draws.sigma
        device = self.denoiser.device
        x_0 = torch.stack([s.latent for s in group])
        input_noise = None if draws.input_noise is None else draws.input_noise.to(device)
        weight = loss_weight(config, process, sigma) * torch.tensor([s.weight for s in group])
        noised = add_noise(process, x_0.to(device), draws.noise.to(device), sigma.to(device), input_noise)
        dropped = draws.dropped.tolist()
        conditioning = [self.condition_of(s, d) for s, d in zip(group, dropped, strict=True)]
        mask = self._mask(group, x_0, device)
        counts = self.denoiser.drawn(noised.x_t, conditioning)
        if counts is not None:
            mask = counts if mask is None else mask * counts
        return Drawn(
            noised=noised,
            conditioning=conditioning,
            weight=weight.to(device),
            mask=mask,
            threshold=huber_threshold(config, process, sigma).to(device),
        )

    def _mask(self, group: Sequence[CachedSample], x_0: Tensor, device: torch.device) -> Tensor | None:
        if not self.config.masked or all(s.mask is None for s in group):
            return None
        everything = torch.ones_like(x_0[:1, :1])[0]
        mask = torch.stack([everything if s.mask is None else s.mask.expand_as(everything) for s in group])
        return mask.clamp(min=self.config.unmasked_weight).to(device)

    def loss(self, drawn: Drawn, target: Tensor | None = None) -> Tensor:
        """[B]: weighted loss of each sample; `target` replaces the target of the noise process."""
        noised = drawn.noised
        output = self.denoiser.predict(noised.x_t, noised.sigma, drawn.conditioning)
        target = noised.target if target is None else target
        if self.own_loss is None:
            elements = element_loss(self.config, output, target, drawn.threshold)
        else:
            name = self.config.own_loss
            elements = own_element_loss(self.own_loss, name, output, target, noised.sigma)
        loss = drawn.weight * sample_loss(elements, drawn.mask)
        return loss if self.embedding is None else loss + self.embedding.anchor().to(loss.device)

    @torch.no_grad()
    def base_prediction(self, noised: Noised, conditioning: Sequence[Conditioning]) -> Tensor:
        """What the untouched model says."""
        with self.adapter.disabled():
            return self.denoiser.predict(noised.x_t, noised.sigma, conditioning)

    def preservation_loss(self, drawn: Drawn, group: Sequence[CachedSample]) -> Tensor:
        """[B]: distance from the untouched model at the class prompt."""
        conditioning = [s.class_conditioning for s in group]
        target = self.base_prediction(drawn.noised, conditioning)
        output = self.denoiser.predict(drawn.noised.x_t, drawn.noised.sigma, conditioning)
        return sample_loss((output - target).square(), self.denoiser.drawn(drawn.noised.x_t, conditioning))


def backward_batch(
    objective: Objective,
    batch: MicroBatch,
    generator: torch.Generator,
    *,
    scale: Callable[[Tensor], Tensor],
    check_interrupt: Callable[[], None],
) -> Tensor:
    """Add the gradient of the batch's loss; returns the loss, detached, on the device.

    `scale` is applied to each part before its backward pass: 1/accumulation, and the GradScaler's factor.
    The gradient of a short batch counts by its share, so that no sample weighs more for being in one; the
    loss that is returned is the mean all the same. Where samples are elsewhere it is their processes' sum
    that is the gradient and the loss.
    """
    prior, parts = objective.prior, []

    def backward(loss: Tensor, share: float) -> None:
        scale(loss * share).backward()
        parts.append(loss.detach())

    def here(
        samples: Sequence[CachedSample | Elsewhere],
    ) -> Iterator[tuple[list[CachedSample], Drawn]]:
        for group in same_shape_groups(samples):
            check_interrupt()
            draws = objective.draws(group, generator)
            own = [s for s in group if isinstance(s, CachedSample)]
            if len(own) < len(group):
                draws = draws.of([i for i, s in enumerate(group) if isinstance(s, CachedSample)])
            if own:
                yield own, objective.with_draws(own, draws)

    for group, drawn in here(batch.samples):
        backward(objective.loss(drawn).sum() / len(batch.samples), batch.share)
        if prior.preserves_output:
            check_interrupt()
            preserved = objective.preservation_loss(drawn, group).sum() / len(batch.samples)
            backward(prior.weight * preserved, batch.share)
    for _, drawn in here(batch.class_samples):
        target = None
        if prior.method == "class_images_base_target":
            target = objective.base_prediction(drawn.noised, drawn.conditioning)
        kept = objective.loss(drawn, target).sum() / len(batch.class_samples)
        backward(prior.weight * kept, batch.class_share)
    return torch.stack(parts).sum() if parts else torch.zeros((), device=objective.denoiser.device)
