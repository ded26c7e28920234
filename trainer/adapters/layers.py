"""What our adapter layers do differently from peft's."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..memory.quantised import full_weight, is_quantised
from .kinds import Kind
from .low_rank import ADAPTER


class Untouched(nn.Module):
    """The base layer, computing as it would without an adapter while its adapter runs under autocast."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.base_layer(x, *args, **kwargs)


@lru_cache
def under_autocast(layer: type[nn.Module], dtype: torch.dtype) -> type[nn.Module]:
    """The class of layer with its forward pass under autocast.

    A class and no wrapper around each layer's method, for which torch.compile would compile every block anew.
    """

    class UnderAutocast(layer):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            with torch.autocast(x.device.type, dtype=dtype):
                return super().forward(x, *args, **kwargs)

    return UnderAutocast


def stand_in(layer: Any) -> nn.Module:
    """A plain layer of the same shape without storage."""
    for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(layer, cls):
            shape: Any = (layer.in_channels, layer.out_channels, layer.kernel_size)
            steps = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
            return cls(*shape, **steps, bias=layer.bias is not None, device="meta")
    bias = getattr(layer, "bias", None) is not None
    return nn.Linear(layer.in_features, layer.out_features, bias=bias, device="meta")


def base_weight(layer: Any) -> Tensor:
    """The frozen weight in fp32, whatever it is stored in."""
    base: Any = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.base_layer
    return full_weight(base) if is_quantised(base) else base.weight.detach().float()


def dora_norm(layer: BaseTunerLayer) -> Callable[..., Tensor]:
    """‖W + s·BA‖ of each output row in fp32, in place of peft's `get_weight_norm`.

    peft takes it in the network's half precision, which rounds the magnitude of each row to 8 bits.
    """

    def norm(weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None) -> Tensor:
        del weight, adapter_name
        full = base_weight(layer)
        rows = (full + scaling * lora_weight.float().reshape(full.shape)).flatten(1).norm(dim=1)
        return rows if full.ndim == 2 else rows.view(1, -1, *[1] * (full.ndim - 2))

    return norm


def dora_product(lora_A: Any, lora_B: Any, adapter_name: str | None = None) -> Tensor:  # noqa: N803
    """BA as [out, in·kernel], of which the norm is taken and no gradient.

    In place of peft's `get_lora_weight`, which sends an identity matrix of all inputs through both layers.
    """
    del adapter_name
    with torch.no_grad(), torch.autocast(lora_A.weight.device.type, enabled=False):
        return lora_B.weight.flatten(1) @ lora_A.weight.flatten(1)


def dora_forward(layer: BaseTunerLayer, magnitude: Any) -> Callable[..., Tensor]:
    """peft's, which beside a quantised weight sees neither that weight nor a bias in fp8.

    Under dropout peft multiplies by the weight itself; here it is given the base layer's own output then.
    """
    forward = magnitude.forward

    def beside_quantised(
        x: Tensor, *, base_layer: Any, base_result: Tensor | None = None, **rest: Any
    ) -> Tensor:
        if is_quantised(base_layer):
            base_result = layer.base_layer(x) if base_result is None else base_result  # type: ignore[operator]
            bias = None if base_layer.bias is None else base_layer.bias.to(x.dtype)
            base_layer = SimpleNamespace(weight=nn.Parameter(torch.empty(0)), bias=bias)
        return forward(x, base_layer=base_layer, base_result=base_result, **rest)

    return beside_quantised


def init_adapter(layer: Any, kind: Kind, init: str, generator: torch.Generator) -> None:
    """Draw the factors in fp32 on the CPU, so that they are the same for every base dtype and device.

    One factor of each product is zero: an untrained adapter changes nothing, bit for bit.
    """
    own = {name for name, _ in adapter_parameters(layer)}
    zero = next((name for name in kind.zero if name in own), "")
    for name, p in adapter_parameters(layer):
        if name in ("oft_blocks", "diff", "lora_magnitude_vector"):
            continue
        value = torch.zeros(p.shape) if name == zero else _drawn(name, p.shape, init, generator)
        p.data = value.to(p.device)
    if ADAPTER in getattr(layer, "lora_magnitude_vector", {}):
        magnitude = layer.lora_magnitude_vector[ADAPTER]
        magnitude.get_weight_norm = dora_norm(layer)
        magnitude.get_lora_weight = dora_product
        magnitude.forward = dora_forward(layer, magnitude)
        full = base_weight(layer)
        magnitude.weight.data = magnitude.get_weight_norm(full, torch.zeros_like(full), 1.0)


def adapter_parameters(layer: nn.Module | BaseTunerLayer) -> list[tuple[str, nn.Parameter]]:
    """The layer's own parameters as `lora_A`, `hada_w1_a`, …, without the base layer's."""
    return [
        (k.split(".")[0], p)
        for k, p in cast(nn.Module, layer).named_parameters()
        if not k.startswith("base_layer.")
    ]


def _drawn(name: str, shape: torch.Size, init: str, generator: torch.Generator) -> Tensor:
    fan_in = shape[1:].numel()
    if init == "kaiming":  # uniform with a = √5, as nn.Linear's own
        bound = fan_in**-0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    # A ~ N(0, 1/r), as in the LoRA paper's code; for the factors of LoHa and LoKr the variance of "kaiming".
    std = 1 / shape[0] if name == "lora_A" else (3 * fan_in) ** -0.5
    return torch.empty(shape).normal_(0, std, generator=generator)
