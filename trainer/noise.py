"""Noising and target, in the model's own space.

eps       x_t = x_0 + σ ε             target ε
v         x_t = x_0 + σ ε             target (ε - σ x_0) / √(1 + σ²)
flow      x_t = (1 - σ) x_0 + σ ε     target ε - x_0
affine    x_t = x_0 + σ ε             target (x_0 - a x_t) / b, where the model's x_0 is a x_t + b output

eps and v are written in variance-exploding form; the denoiser scales its input by 1/√(1 + σ²), which gives
the DDPM form √ᾱ x_0 + √(1-ᾱ) ε with ᾱ = 1/(1 + σ²) (Karras et al. 2022, appendix C.3).
Flow is rectified flow (Liu et al. 2022; Esser et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Prediction = Literal["eps", "v", "flow", "affine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What the network counts as a token, for the shifts that depend on how many there are."""

    patch: int = 2
    """Latent pixels of a side of one."""
    pixels: int = 16
    """Pixels of a side of one."""
    line: tuple[float, float, float, float] = (256, 0.5, 4096, 1.15)
    """(tokens, μ, tokens, μ): two points of the model's line from tokens to μ. Flux.1's is that of Black
    Forest Labs' sampling code."""

    def mu(self, tokens: float) -> float:
        low, at_low, high, at_high = self.line
        return at_low + (tokens - low) * (at_high - at_low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class NoiseProcess:
    """What the network predicts, and the noise levels it knows."""

    prediction: Prediction
    sigmas: Tensor
    """[T] fp32 on the CPU, ascending: σ of each of the T timesteps, the model's own shift applied."""
    shift: float = 1.0
    """The model's own time shift s: σ = s u / (1 + (s - 1) u) (flow models only)."""
    noise_scale: float = 1.0
    """Standard deviation of the noise at σ = 1 (flow models only)."""
    tokens: Tokens = Tokens()

    def sigma(self, u: Tensor, shift: float | Tensor) -> Tensor:
        """Noise level of the time fraction u in [0, 1) after `shift`; eps and v read it from the table."""
        if self.prediction == "flow":
            return shift_time(u, shift)
        steps = len(self.sigmas)
        return self.sigmas[(shift_time(u, shift) * steps).long().clamp(0, steps - 1)]

    def snr(self, sigma: Tensor) -> Tensor:
        """Signal-to-noise ratio: 1/σ², for flow ((1 - σ)/σ)²."""
        return ((1 - sigma) / sigma) ** 2 if self.prediction == "flow" else sigma**-2

    def target(self, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What the network should put out. sigma: [B, 1, ...]"""
        if self.prediction == "flow":
            return self.noise_scale * noise - x_0
        if self.prediction == "v":
            return (noise - sigma * x_0) / (1 + sigma**2).sqrt()
        if self.prediction == "eps":
            return noise
        raise NotImplementedError(f"the process of a {self.prediction} model brings its own target")


@dataclass(frozen=True, kw_only=True)
class Noised:
    x_t: Tensor
    sigma: Tensor
    target: Tensor


def shift_time(u: Tensor, shift: float | Tensor) -> Tensor:
    """s u / (1 + (s - 1) u): more time at high noise for s > 1 (Esser et al. 2024, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


def add_noise(
    process: NoiseProcess, x_0: Tensor, noise: Tensor, sigma: Tensor, input_noise: Tensor | None = None
) -> Noised:
    """x_0, noise: [B, C, ...]; sigma: [B]. All fp32.

    input_noise: what x_t is made with when it differs from the noise in the target (input perturbation,
    Ning et al. 2023).
    """
    s = sigma.view(-1, *[1] * (x_0.ndim - 1))
    mixed = noise if input_noise is None else input_noise
    target = process.target(x_0, noise, s)
    if process.prediction == "flow":
        return Noised(x_t=(1 - s) * x_0 + s * (process.noise_scale * mixed), sigma=sigma, target=target)
    return Noised(x_t=x_0 + s * mixed, sigma=sigma, target=target)
