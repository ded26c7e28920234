"""Losses of one sample, and their weight along the noise schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import ObjectiveConfig
from .errors import ConfigError
from .noise import NoiseProcess

_V_WEIGHTINGS = {
    "min_snr": lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1),
    "debiased_kohya": lambda snr, gamma: 1 / (snr + 1),
    "debiased_onetrainer": lambda snr, gamma: 1 / (snr + 1).sqrt(),
}
_EPS_WEIGHTINGS = {
    "min_snr": lambda snr, gamma: snr.clamp(max=gamma) / snr,
    "debiased_kohya": lambda snr, gamma: 1 / snr.clamp(max=1000).sqrt(),
    "debiased_onetrainer": lambda snr, gamma: 1 / snr.clamp(max=1000).sqrt(),
}
_FLOW_WEIGHTINGS = {
    "sigma_sqrt": lambda sigma: sigma**-2,
    "cosmap": lambda sigma: 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2)),
}


def check_weighting(config: ObjectiveConfig, process: NoiseProcess) -> None:
    """Raises ConfigError when the weighting is not defined for what the model predicts."""
    tables = {"eps": _EPS_WEIGHTINGS, "v": _V_WEIGHTINGS, "flow": _FLOW_WEIGHTINGS}
    known = tables.get(process.prediction, {})
    if config.weighting != "none" and config.weighting not in known:
        raise ConfigError(
            f"weighting {config.weighting!r} is not defined for a model that predicts {process.prediction};"
            f" choose {' or '.join(['none', *known])}"
        )


def loss_weight(config: ObjectiveConfig, process: NoiseProcess, sigma: Tensor) -> Tensor:
    """[B], by the noise level.

    min_snr: Hang et al. 2023, in the forms of diffusers' text-to-image scripts. debiased: Yu et al. 2023; the
    form for v differs between sd-scripts, 1/(snr + 1), and OneTrainer, 1/√(snr + 1), so both have a name.
    sigma_sqrt and cosmap: diffusers' `compute_loss_weighting_for_sd3`.
    """
    if config.weighting == "none":
        return torch.ones_like(sigma)
    if process.prediction == "flow":
        return _FLOW_WEIGHTINGS[config.weighting](sigma)
    table = _EPS_WEIGHTINGS if process.prediction == "eps" else _V_WEIGHTINGS
    return table[config.weighting](process.snr(sigma), config.min_snr_gamma)


def huber_threshold(config: ObjectiveConfig, process: NoiseProcess, sigma: Tensor) -> Tensor:
    """[B]: the c of the pseudo-Huber loss, as sd-scripts schedules it.

    constant; exponential: c^u, from 1 at the clean end to c at full noise; snr: (1 - c)/(1 + σ)² + c.
    """
    c = config.huber_c
    if config.huber_schedule == "constant":
        return torch.full_like(sigma, c)
    if config.huber_schedule == "snr":
        s = sigma / (1 - sigma).clamp(min=1e-6) if process.prediction == "flow" else sigma
        return (1 - c) / (1 + s) ** 2 + c
    if process.prediction == "flow":
        u = sigma
    else:
        table = process.sigmas.to(sigma.device)
        u = torch.searchsorted(table, sigma.contiguous()) / len(table)
    return torch.exp(math.log(c) * u)


def element_loss(config: ObjectiveConfig, prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """Loss of each element, of the prediction's shape. `threshold`: [B], used by huber."""
    difference = prediction.float() - target.float()
    if config.loss == "mse":
        return difference.square()
    if config.loss == "l1":
        return difference.abs()
    c = threshold.view(-1, *[1] * (difference.ndim - 1))
    # 2 c (√(d² + c²) - c), sd-scripts' pseudo-Huber loss, in a form that loses no digits for small d.
    square = difference.square()
    return 2 * c * square / ((square + c**2).sqrt() + c)


def sample_loss(elements: Tensor, mask: Tensor | None) -> Tensor:
    """[B]: the mean over a sample's elements; `mask` [B, 1, ...] multiplies them first."""
    if mask is not None:
        elements = elements * mask
    return elements.flatten(1).mean(1)
