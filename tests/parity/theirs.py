"""diffusers' side: its network, the same LoRA by peft, target and loss as in its training scripts."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig
from torch import Tensor, nn

from .case import RANK, Case, Numbers
from .ours import PREFIX
from .result import Result

Rows = dict[str, slice]
"""Layer of diffusers' network → its rows in the layer of ComfyUI's."""


def corresponding(weights: dict[str, Tensor], net: nn.Module, layers: list[str]) -> dict[str, Rows]:
    """ComfyUI's layer → the layers of `net` with its weights, found by the weights themselves.

    A fused layer (qkv) corresponds to several, each with its slice of rows.
    """
    theirs = {n: m.weight for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    by_first_row = {w[0].numpy().tobytes(): n for n, w in theirs.items()}
    out = {}
    for layer in layers:
        fused, rows, at = weights[f"{PREFIX}{layer}.weight"], {}, 0
        while at < len(fused):
            name = by_first_row.get(fused[at].numpy().tobytes())
            assert name, f"row {at} of {layer} is the first row of no layer of {type(net).__name__}"
            end = at + len(theirs[name])
            assert torch.equal(fused[at:end], theirs[name])
            rows[name] = slice(at, end)
            at = end
        out[layer] = rows
    return out


def ddpm() -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def noise_levels(case: Case) -> Tensor:
    """[1000] ascending: σ of the timesteps that a training script draws from."""
    if case.prediction == "flow":
        return FlowMatchEulerDiscreteScheduler(shift=case.shift).sigmas.flip(0)
    signal = ddpm().alphas_cumprod
    return ((1 - signal) / signal).sqrt()


def run(case: Case, weights: dict[str, Tensor], numbers: Numbers, ours: Result) -> Result:
    net = case.theirs({k: v.clone() for k, v in weights.items()}).eval().requires_grad_(False)
    split = corresponding(weights, net, list(ours.weights))
    names = [n for rows in split.values() for n in rows]
    net.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    loras = {n: net.get_submodule(n) for n in names}
    assert sum(hasattr(m, "lora_A") for m in net.modules()) == len(names)
    for layer, rows in split.items():
        a, b = ours.weights[layer]
        for name, at in rows.items():
            loras[name].lora_A["default"].weight.data = a.clone()
            loras[name].lora_B["default"].weight.data = b[at].clone()

    same_length = len(set(numbers.tokens)) == 1
    parts = [numbers] if same_length else [numbers.alone(i) for i in range(len(numbers.tokens))]
    losses, targets = [], []
    for part in parts:
        x_t, target = _noised(case, part)
        prediction = case.predict(net, replace(part, x_t=x_t))
        loss = ((prediction.float() - target.float()) ** 2).reshape(len(target), -1).mean(1)
        (loss.sum() / len(numbers.tokens)).backward()
        losses.append(loss.detach())
        targets.append(target)

    # ΔW = B·A with one A for all rows, so that ∂L/∂A sums over the parts of a fused layer, ∂L/∂B stacks them.
    def gradient(name: str, part: str) -> Tensor:
        p = getattr(loras[name], part)["default"].weight
        return torch.zeros_like(p) if p.grad is None else p.grad

    gradients = {
        layer: (
            torch.stack([gradient(n, "lora_A") for n in rows]).sum(0),
            torch.cat([gradient(n, "lora_B") for n in rows]),
        )
        for layer, rows in split.items()
    }
    return Result(
        target=torch.cat(targets), loss=torch.cat(losses), weights=ours.weights, gradients=gradients
    )


def _noised(case: Case, n: Numbers) -> tuple[Tensor, Tensor]:
    if case.prediction == "flow":
        sigma = (n.t / 1000).view(-1, *[1] * (n.x_0.ndim - 1))
        return (1.0 - sigma) * n.x_0 + sigma * n.noise, n.noise - n.x_0
    scheduler = ddpm()
    x_t = scheduler.add_noise(n.x_0, n.noise, n.t)
    return x_t, n.noise if case.prediction == "eps" else scheduler.get_velocity(n.x_0, n.noise, n.t)
