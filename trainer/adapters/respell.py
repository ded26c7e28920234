"""The same change of a layer in the tensors that ComfyUI's loader reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def for_comfyui(roles: Mapping[str, Tensor], weight: Callable[[], Tensor]) -> dict[str, Tensor]:
    """roles: of one layer, as `shapes.check_layer` lets them pass. weight: the layer's own W, in fp32."""
    out = dict(roles)
    if "lora_magnitude_vector" in out:
        out = _over_base(out, weight())
    if "lokr_t2" in out:
        out = _without_core(out)
    return out


def _over_base(roles: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """A DoRA of peft's, m over ‖W + ΔW‖, as m·‖W‖/‖W + ΔW‖ over ‖W‖: ComfyUI takes no other norm."""
    magnitude, a, b = roles.pop("lora_magnitude_vector"), roles["lora_A"], roles["lora_B"]
    scale = _scale(roles, len(a))
    base = weight.flatten(1)
    merged = base + scale * b.float().flatten(1) @ a.float().flatten(1)
    m = magnitude.float().flatten() * base.norm(dim=1) / merged.norm(dim=1)
    return roles | {"dora_scale": m.reshape(-1, *[1] * (weight.ndim - 1))}


def _without_core(roles: dict[str, Tensor]) -> dict[str, Tensor]:
    """A LoKr whose w2 is Tucker's, with w2 multiplied out: ComfyUI's product of it fails in torch.kron."""
    a, b, core = (roles.pop(f"lokr_{name}").float() for name in ("w2_a", "w2_b", "t2"))
    w2 = torch.einsum("i j k l, i p, j r -> p r k l", core, a, b)
    scale = _scale(roles, len(b))
    if "lokr_w1_b" in roles:  # whose rank alpha is over from now on
        scale = len(roles["lokr_w1_b"]) / len(b) if "alpha" in roles else 1.0
    return roles | {"lokr_w2": (w2 * scale).contiguous()}


def _scale(roles: Mapping[str, Tensor], rank: int) -> float:
    return float(roles["alpha"].float().item()) / rank if "alpha" in roles else 1.0
