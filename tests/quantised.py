"""Linear layers and files with quantised weights, made by ComfyUI's own code, as its loader gives them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import comfy.ops
import comfy.quant_ops
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor, nn


@dataclass(frozen=True)
class Format:
    name: str
    algo: str = ""
    """In QUANT_ALGOS; empty: fp8 without scales."""
    rounding: float = 0.0
    """Of the output, relative, where the forward pass rounds the input of normal values."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the quantisation; those of ConvRot are written beside the weight."""
    input_scale: float | None = None

    @property
    def known(self) -> bool:
        return not self.algo or self.algo in QUANT_ALGOS


_CONVROT = {"convrot": True, "convrot_groupsize": 64}
FORMATS = {
    f.name: f
    for f in (
        Format("fp8_e4m3fn"),
        Format("fp8_e5m2"),
        Format("fp8_e4m3fn_scaled", "float8_e4m3fn", 0.05),
        Format("fp8_e4m3fn_scaled_input", "float8_e4m3fn", 0.05, input_scale=0.01),
        Format("fp8_e5m2_scaled", "float8_e5m2", 0.1),
        Format("nvfp4", "nvfp4", 0.2),
        Format("mxfp8", "mxfp8", 0.05),
        Format("int8", "int8_tensorwise", 0.02),
        Format("int8_by_row", "int8_tensorwise", 0.02, {"per_channel": True}),
        Format("int8_convrot", "int8_tensorwise", 0.02, {"per_channel": True, **_CONVROT}),
        Format("convrot_w4a4", "convrot_w4a4", 0.3, {"convrot_groupsize": 64}),
    )
}


def quantised(weight: Tensor, form: Format) -> dict[str, Tensor]:
    """What a file holds of a layer, by the end of the key: `weight`, `weight_scale`, `comfy_quant`, …"""
    if not form.known:
        pytest.skip(f"this ComfyUI does not know {form.algo}")
    if not form.algo:
        return {"weight": weight.to(getattr(torch, f"float8_{form.name.removeprefix('fp8_')}"))}
    layout = QUANT_ALGOS[form.algo]["comfy_tensor_layout"]
    made = QuantizedTensor.from_float(weight, layout, scale="recalculate", **form.options)
    written = {"format": form.algo, **{k: v for k, v in form.options.items() if k.startswith("convrot")}}
    tensors = made.state_dict("weight")
    if form.input_scale:
        tensors["input_scale"] = torch.tensor(form.input_scale)
    return {**tensors, "comfy_quant": torch.tensor(list(json.dumps(written).encode()), dtype=torch.uint8)}


def linear(weight: Tensor, bias: Tensor, form: Format, disabled: tuple[str, ...] = ()) -> nn.Module:
    """The layer that ComfyUI loads, of inference tensors.

    disabled: formats that the device does not compute in; such a layer dequantises instead.
    """
    with torch.inference_mode():
        tensors = {**quantised(weight, form), "bias": bias.clone()}
        out, into = weight.shape
        if form.algo:
            operations: Any = comfy.ops.mixed_precision_ops({}, torch.float32, disabled=list(disabled))
            layer = operations.Linear(into, out, dtype=torch.float32)
        else:
            layer = comfy.ops.manual_cast.Linear(into, out, dtype=tensors["weight"].dtype)
        layer.load_state_dict(tensors, assign=True)
        return layer.requires_grad_(False)


def full(layer: Any, part: str = "weight") -> Tensor:
    """The layer's weight dequantised, in fp32."""
    weight = getattr(layer, part)
    return (weight.dequantize() if isinstance(weight, QuantizedTensor) else weight).float().clone()


def quantised_file(weights: dict[str, Tensor], form: Format, inside: str = "blocks.") -> dict[str, Tensor]:
    """A state dict with the linear layers of its blocks quantised that the format's group sizes divide."""
    file: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and tensor.ndim == 2 and inside in name and tensor.shape[1] % 64 == 0:
            file |= {f"{layer}.{key}": value for key, value in quantised(tensor, form).items()}
        else:
            file[name] = tensor
    return file
