"""The noise process of a ComfyUI model, read from its `model_sampling`."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..noise import NoiseProcess, Prediction

_PREDICTIONS: dict[str, Prediction] = {
    "EPS": "eps",
    "V_PREDICTION": "v",
    "V_PREDICTION_DDPM": "v",
    "CONST": "flow",
    "COSMOS_RFLOW": "flow",
}
"""Class in `comfy.model_sampling` → what the network predicts."""

_NO_NOISE = ("X0", "IMG_TO_IMG", "IMG_TO_IMG_FLOW")
"""Classes whose networks turn one picture into another and know no noise."""


@dataclass(frozen=True, kw_only=True)
class AffineProcess(NoiseProcess):
    """Any model whose x_0 is affine in the network's output: x_0 = a x_t + b output."""

    sampling: Any
    """ComfyUI's object, whose `calculate_denoised(σ, output, x_t)` is that x_0."""

    def target(self, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        x_t = x_0 + sigma * noise
        a_x_t = self.sampling.calculate_denoised(sigma, torch.zeros_like(x_t), x_t)
        b = self.sampling.calculate_denoised(sigma, torch.ones_like(x_t), torch.zeros_like(x_t))
        return (x_0 - a_x_t) / b


def noise_process(model_sampling: Any) -> NoiseProcess:
    """What the network predicts and the noise levels it knows. Raises ModelError when that is no noise."""
    names = [cls.__name__ for cls in type(model_sampling).__mro__]
    kind = _parameterisation(model_sampling)
    if kind in _NO_NOISE:
        raise ModelError(f"a model of the type {kind} removes no noise; a LoRA cannot be trained on it")
    prediction = _PREDICTIONS.get(kind)
    if prediction != "flow" and float(getattr(model_sampling, "sigma_data", 1.0)) != 1.0:
        prediction = None
    sigmas = model_sampling.sigmas.detach().to("cpu", torch.float32, copy=True)
    if prediction is None:
        _check_affine(model_sampling, kind)
        twin = copy.copy(model_sampling)
        return AffineProcess(prediction="affine", sigmas=sigmas, sampling=twin)
    if kind == "COSMOS_RFLOW":  # its σ is that of x_0 + σ ε; flow's is σ / (1 + σ)
        least, most = sigmas[0] / (1 + sigmas[0]), sigmas[-1] / (1 + sigmas[-1])
        return NoiseProcess(prediction="flow", sigmas=torch.linspace(float(least), float(most), 1000))
    shift = float(getattr(model_sampling, "shift", 1.0)) if prediction == "flow" else 1.0
    return NoiseProcess(
        prediction=prediction,
        sigmas=sigmas,
        shift=math.exp(shift) if "ModelSamplingFlux" in names else shift,
        noise_scale=float(getattr(model_sampling, "noise_scale", 1.0)),
    )


def raw_output_sampling(model_sampling: Any) -> Any:
    """A twin of `model_sampling` that lets the network's own output through instead of turning it to x_0.

    It takes x_t and σ as `noise_process` defines them.
    """
    kind = type(model_sampling)
    changes: dict[str, Any] = {"calculate_denoised": lambda self, sigma, output, x: output}
    parameterisation = _parameterisation(model_sampling)
    if parameterisation == "COSMOS_RFLOW":  # the network itself takes (1 - σ) x_0 + σ ε and σ
        changes["calculate_input"] = lambda self, sigma, x: x
        changes["timestep"] = lambda self, sigma: sigma
    if parameterisation == "V_PREDICTION_DDPM":  # the network itself takes √ᾱ x_0 + √(1-ᾱ) ε
        changes["calculate_input"] = lambda self, sigma, x: x / (1 + _columns(sigma, x) ** 2).sqrt()
    raw = copy.copy(model_sampling)
    raw.__class__ = type(kind.__name__, (kind,), changes)
    return raw


def _parameterisation(model_sampling: Any) -> str:
    """Name of the class that says how output and x_0 hang together.

    ComfyUI joins it with the schedule's class: `class ModelSampling(Schedule, Parameterisation)`.
    """
    for cls in type(model_sampling).__mro__:
        if "calculate_denoised" in vars(cls):
            return cls.__name__
    raise ModelError(f"{type(model_sampling).__name__} does not say what the network predicts")


def _check_affine(model_sampling: Any, kind: str) -> None:
    """x_0 must be affine in the output, and noise must be added as x_0 + σ ε."""
    g = torch.Generator().manual_seed(0)
    x, out, noise = (torch.randn(2, 3, 4, 4, generator=g) for _ in range(3))
    sigma = model_sampling.sigmas[[len(model_sampling.sigmas) // 3, len(model_sampling.sigmas) // 2]].cpu()

    def x_0(output: Tensor) -> Tensor:
        return model_sampling.calculate_denoised(sigma, output, x)

    affine = torch.allclose(x_0(2 * out) - x_0(out), x_0(out) - x_0(0 * out), rtol=1e-3, atol=1e-4)
    mixed = model_sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise.clone(), x)
    if not affine or not torch.allclose(mixed, x + sigma.view(-1, 1, 1, 1) * noise, rtol=1e-4, atol=1e-4):
        raise ModelError(f"this model's prediction type ({kind}) is not one of eps, v, flow or EDM")


def _columns(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.view(-1, *[1] * (x.ndim - 1))
