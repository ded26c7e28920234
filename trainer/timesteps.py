"""Where along the noise schedule a step trains: distributions of the time fraction u.

u = 0 is the clean picture and u = 1 is noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import ObjectiveConfig
from .noise import NoiseProcess, Tokens, shift_time

FLUX = Tokens()


def flux_shift(tokens: float, of: Tokens = FLUX) -> float:
    """s = e^μ, μ linear in the number of tokens: 1.8776, 2.3319, 3.1582 at 512, 768 and 1024 pixels of
    Flux.1."""
    return math.exp(of.mu(tokens))


def resolution_shift(own_shift: float, tokens: float, of: Tokens = FLUX) -> float:
    """√(m/n) times the model's own shift, which holds at 1024 pixels (Esser et al. 2024, eq. 23)."""
    return own_shift * math.sqrt(tokens) * of.pixels / 1024


def _mode(u: Tensor, scale: float) -> Tensor:
    """Mode sampling with heavy tails (Esser et al. 2024, eq. 20)."""
    return 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)


def _cosmap(u: Tensor) -> Tensor:
    """Matches the log-SNR of the cosine schedule (Esser et al. 2024, eq. 21)."""
    return 1 - 1 / (torch.tan(math.pi * u / 2) + 1)


def _logit_normal(n: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    return torch.sigmoid(mean + std * torch.randn(n, generator=generator))


def sampling_method(config: ObjectiveConfig, process: NoiseProcess) -> str:
    """What "auto" means: uniform over the schedule; for flow with the model's own shift."""
    if config.timestep_sampling != "auto":
        return config.timestep_sampling
    return "model_shift" if process.prediction == "flow" else "uniform"


def sigma_from_uniform(u: Tensor, config: ObjectiveConfig, process: NoiseProcess, tokens: float) -> Tensor:
    """The deterministic part: time fractions → noise levels, with range and shift applied."""
    method = sampling_method(config, process)
    shift: float = {
        "model_shift": process.shift,
        "shift": config.shift or process.shift,
        "resolution_shift": resolution_shift(config.shift or process.shift, tokens, process.tokens),
        "flux_shift": flux_shift(tokens, process.tokens),
    }.get(method, config.shift or 1.0)
    u = config.t_min + (config.t_max - config.t_min) * shift_time(u, shift)
    # σ = 0 has no target in eps models and no noise to learn from in flow models.
    return process.sigma(u.clamp(min=1e-4), 1.0)


def draw_sigma(
    process: NoiseProcess, config: ObjectiveConfig, n: int, tokens: float, generator: torch.Generator
) -> Tensor:
    """[n] noise levels, fp32 on the CPU. `tokens`: of the network, in all frames."""
    method = sampling_method(config, process)
    if method in ("uniform", "model_shift"):
        u = torch.rand(n, generator=generator)
    elif method == "logit_normal":
        u = _logit_normal(n, config.logit_mean, config.logit_std, generator)
    elif method == "mode":
        u = _mode(torch.rand(n, generator=generator), config.mode_scale)
    elif method == "cosmap":
        u = _cosmap(torch.rand(n, generator=generator))
    else:  # sigmoid, and the shifts of it
        u = _logit_normal(n, 0.0, config.sigmoid_scale, generator)
    return sigma_from_uniform(u, config, process, tokens)
