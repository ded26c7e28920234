"""Frozen weights held in fp8 or int8 for a run, in ComfyUI's own quantised tensors.

fp8     e4m3, one scale for a weight: a power of two, which no dtype rounds
int8    symmetric, one scale for each output

Layers compute with the dequantised weight, which the backward pass sees too; nothing rounds their input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor, nn

from ..config import AS_LOADED
from ..errors import ModelError
from ..memory.blocks import replaced_forward
from ..memory.quantised import can_be_differentiable
from .quantised import packed
from .staging import nbytes

_ALGORITHMS = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}
_PLAIN = (Tensor, nn.Parameter)


def available() -> list[str]:
    """The values of base_precision that this ComfyUI knows, "as loaded" first."""
    return [AS_LOADED, *(name for name, algorithm in _ALGORITHMS.items() if algorithm in QUANT_ALGOS)]


class BasePrecision:
    """The weights of linear layers and convolutions within the blocks, held in another precision.

    Norms, biases, embeddings, what lies outside of the blocks and what is quantised already stay as loaded.
    """

    def __init__(self, name: str, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """name: one of `config.BASE_PRECISIONS`. device: what quantises, one layer at a time.

        Raises ModelError when this ComfyUI lacks the format.
        """
        self.wanted, self.device = name, device
        self.layers: list[nn.Module] = []
        """What is quantised for the run."""
        self.left = 0
        """Weights that were quantised already."""
        self.bytes = (0, 0)
        """Of the weights of `layers`: as loaded, and as they are held."""
        self._candidates: set[int] = set()
        if name != AS_LOADED:
            if _ALGORITHMS[name] not in QUANT_ALGOS:
                raise ModelError(
                    f"this ComfyUI cannot hold weights in {name}; update it with its requirements, or set"
                    f" base_precision to {AS_LOADED} (Train Memory)"
                )
            found = (m for block in blocks for m in block.modules() if can_be_differentiable(m))
            self._candidates = {id(m) for m in found}

    @property
    def name(self) -> str:
        """What the weights are held in indeed."""
        return self.wanted if self.layers else AS_LOADED

    @property
    def remarks(self) -> list[str]:
        said = []
        if self.layers:
            before, after = (f"{n / 2**30:.2f} GB" for n in self.bytes)
            said.append(
                f"{len(self.layers)} weights of the blocks are held in {self.wanted} for the run:"
                f" {after} instead of {before}"
            )
        if self.left:
            said.append(
                f"base_precision is {self.wanted}, but {self.left} weights of the blocks are quantised in the"
                " model already: they stay as loaded"
            )
        return said

    def held(self, layer: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
        """The quantised weight on the device, for `Staging`; None for what stays as it is."""
        if name != "weight" or id(layer) not in self._candidates:
            return None
        if type(tensor) not in _PLAIN or packed(tensor) or tensor.dtype.itemsize == 1:
            self.left += 1
            return None
        if tensor.ndim < 2:
            return None
        made = quantised(tensor.to(self.device), self.wanted)
        self.layers.append(layer)
        self.bytes = (self.bytes[0] + nbytes(tensor), self.bytes[1] + nbytes(made))
        return made

    @contextmanager
    def dequantised_at_use(self) -> Iterator[None]:
        """The forward pass of `layers` for the length of the block, whatever ComfyUI's classes make of a
        quantised weight. To be entered before `quantised_layers_differentiable`."""
        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(replaced_forward(layer, _on_dequantised(layer)))
            yield


def quantised(weight: Tensor, precision: str) -> QuantizedTensor:
    """[out, in, ...] in fp8 or int8; what it gives back has the dtype of `weight`."""
    full = weight.detach().float()
    layout = QUANT_ALGOS[_ALGORITHMS[precision]]["comfy_tensor_layout"]
    if precision == "fp8":
        _, exponent = torch.frexp(full.abs().amax() / torch.finfo(torch.float8_e4m3fn).max)
        scale = torch.ldexp(torch.ones((), device=full.device), exponent)
        return QuantizedTensor.from_float(full, layout, scale=scale).to(weight.dtype)
    rows: Any = QuantizedTensor.from_float(full.flatten(1), layout, per_channel=True).to(weight.dtype)
    scale = rows._params.scale.reshape(-1, *[1] * (weight.ndim - 1))
    params = dataclasses.replace(rows._params, scale=scale, orig_shape=tuple(weight.shape))
    return QuantizedTensor(rows._qdata.reshape(weight.shape), layout, params)


def _on_dequantised(layer: Any) -> Callable[..., Tensor]:
    """The layer's own forward pass with the full weight in its place."""
    host, store = layer.forward, layer._parameters

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        held = store["weight"]
        try:
            with torch.no_grad():
                store["weight"] = held.to(device=x.device, dtype=x.dtype).dequantize()
            return host(x, *args, **kwargs)
        finally:
            store["weight"] = held

    return forward
