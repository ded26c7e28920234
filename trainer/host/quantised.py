"""Quantised weights as ComfyUI and its packs load them.

in the file                               weight             the host's forward pass
fp8 without scales                        Tensor             casts at use; with --fast rounds x too
fp8 with scales, nvfp4, mxfp8             QuantizedTensor    rounds x too where the device computes in it
int8 (tensor-wise, ConvRot), w4a4         QuantizedTensor    rounds x too
GGUF (pack ComfyUI-GGUF)                  GGMLTensor         dequantises at use
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..errors import ModelError
from ..memory.blocks import replaced_forward
from ..memory.quantised import Dequantise, can_be_differentiable, differentiable

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def packed(tensor: Tensor) -> bool:
    """Whether its values are in a form that only its own class can read."""
    if type(tensor) in _PLAIN:
        return False
    return isinstance(tensor, QuantizedTensor) or not tensor.dtype.is_floating_point


@contextmanager
def quantised_layers_differentiable(net: nn.Module) -> Iterator[None]:
    """Gradients through each layer of the net whose weight is quantised; see `memory.quantised`.

    Raises ModelError for a layer that computes with a quantised weight in a way of its own.
    """
    layers: dict[nn.Module, Dequantise] = {}
    for name, layer in net.named_modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or isinstance(layer, nn.Embedding):
            continue
        if packed(weight) or _is_fp8(weight):
            if can_be_differentiable(layer) and weight.ndim >= 2:
                layers[layer] = _dequantise(layer)
            elif packed(weight):
                raise ModelError(
                    f"layer {name} ({type(layer).__name__}) has a quantised weight that cannot be trained"
                    " through; load the model from an fp8 or bf16 file"
                )
    with ExitStack() as stack:
        for layer in layers:
            if isinstance(layer, comfy.ops.fp8_ops.Linear):
                stack.enter_context(replaced_forward(layer, _on_copy(layer)))
        stack.enter_context(differentiable(layers))
        yield


def _is_fp8(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1


def _on_copy(layer: nn.Module) -> Callable[..., Tensor]:
    """Its forward pass, which clamps the input in place, on a copy of the input."""
    forward = layer.forward
    return lambda x: forward(x.clone())


def _dequantise(layer: Any) -> Dequantise:
    """By the layer's own or ComfyUI's own cast, which also moves the weight and applies its patches."""
    cast: Any = getattr(layer, "cast_bias_weight", None)

    def dequantise(dtype: torch.dtype, device: torch.device) -> Tensor:
        with torch.no_grad():
            to = {"dtype": dtype, "device": device, "bias_dtype": dtype}
            weight = cast(**to)[0] if cast else comfy.ops.cast_bias_weight(layer, **to)[0]
            weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
            smoothing = getattr(layer, "pre_quant_scale", None)  # multiplies the input, channel by channel
            return weight if smoothing is None else weight * smoothing.to(weight)

    return dequantise


def unpacked(layer: Any, weight: Any) -> Tensor:
    """The values of a layer's weight without the patches that the GGUF pack hangs on the tensor."""
    if not packed(weight) or isinstance(weight, QuantizedTensor):
        return weight
    bare = weight.to(weight.device, copy=True)
    bare.patches = []
    return layer.get_weight(bare, torch.float32)
