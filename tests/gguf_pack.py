"""Layers as the pack ComfyUI-GGUF has them: its own where it is installed, else ones with the same interface.

The pack is taken from the folder that the environment variable GGUF_PACK names; it needs the package gguf.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.ops
import comfy.utils
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from .gguf_files import SCALES, folder, packed_at_random

BLOCK = 32
"""Values of a row that share one scale."""


def packed_q8_0(weight: Tensor) -> Tensor:
    """[out, in] → [out, in / 32 · 34] bytes: of each 32 values the scale in fp16, then int8."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    values = (blocks / scale.float()).round().to(torch.int8)
    return torch.cat([scale.view(torch.uint8), values.view(torch.uint8)], -1).flatten(1)


def packed_q4_0(weight: Tensor) -> Tensor:
    """[out, in] → [out, in / 32 · 18] bytes: the scale in fp16, then 4 bits each, the first half below."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    scale = (blocks.abs().amax(-1, keepdim=True) / 7).half()
    values = ((blocks / scale.float()).round() + 8).clamp(0, 15).to(torch.uint8)
    low, high = values.chunk(2, -1)
    return torch.cat([scale.view(torch.uint8), low | high << 4], -1).flatten(1)


def unpacked(data: Tensor, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    blocks = data.unflatten(1, (-1, 34 if kind == "Q8_0" else 18))
    scale = blocks[..., :2].contiguous().view(torch.float16)
    values = blocks[..., 2:]
    if kind == "Q8_0":
        values = values.contiguous().view(torch.int8)
    else:
        values = torch.cat([values & 15, values >> 4], -1).to(torch.int8) - 8
    return (scale * values).reshape(shape).to(dtype)


class PackedTensor(Tensor):
    """Bytes that give the shape of the weight that they stand for, and that nothing copies or detaches."""

    def __new__(cls, data: Tensor, tensor_type: str, tensor_shape: torch.Size) -> Any:
        made = data.as_subclass(cls)
        made.tensor_type, made.tensor_shape = tensor_type, tensor_shape
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        new = super().to(*args, **kwargs)
        new.tensor_type, new.tensor_shape = getattr(self, "tensor_type", None), self.shape
        new.patches = list(getattr(self, "patches", ()))
        return new

    def detach(self, *args: Any, **kwargs: Any) -> Any:
        return self

    clone = detach

    @property
    def shape(self) -> Any:
        return getattr(self, "tensor_shape", self.size())


class PackedLayer(nn.Module):
    comfy_cast_weights = True

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                setattr(self, name, nn.Parameter(state_dict[prefix + name], requires_grad=False))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, parameter in self.named_parameters():
            destination[prefix + name] = torch.zeros_like(parameter, device="meta")

    def get_weight(self, tensor: Any, dtype: torch.dtype) -> Any:
        kind = getattr(tensor, "tensor_type", None)
        if kind in (None, "F32"):
            return None if tensor is None else tensor.to(dtype).as_subclass(Tensor)
        weight = unpacked(tensor.data.as_subclass(Tensor), kind, tensor.shape, dtype)
        for patches, key in getattr(tensor, "patches", ()):
            weight = comfy.lora.calculate_weight(patches, weight, key)
        return weight

    def cast_bias_weight(
        self, input: Any = None, dtype: Any = None, device: Any = None, bias_dtype: Any = None
    ) -> Any:
        dtype = dtype if input is None else input.dtype
        return self.get_weight(self.weight, dtype), self.get_weight(self.bias, bias_dtype or dtype)

    def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, *self.cast_bias_weight(x))


class StandInOps(comfy.ops.manual_cast):
    class Linear(PackedLayer, comfy.ops.manual_cast.Linear):
        def __init__(self, into: int, out: int, bias: bool = True, device: Any = None, dtype: Any = None):
            nn.Module.__init__(self)
            self.in_features, self.out_features = into, out
            self.weight = self.bias = None


class PackPatcher(comfy.model_patcher.ModelPatcher):
    """Hangs patches on packed tensors, whose layers apply them at use."""

    def patch_weight_to_device(self, key: str, device_to: Any = None, inplace_update: bool = False) -> Any:
        weight = comfy.utils.get_attr(self.model, key)
        if getattr(weight, "tensor_type", "F32") == "F32":
            return super().patch_weight_to_device(key, device_to, inplace_update)
        if key in self.patches:
            weight = weight.to(device_to)
            weight.patches = [(self.patches[key], key)]
            comfy.utils.set_attr_param(self.model, key, weight)
        return weight

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        for parameter in self.model.parameters() if unpatch_weights else ():
            if isinstance(parameter, PackedTensor):
                parameter.patches = []
        return super().unpatch_model(device_to, unpatch_weights)


def _patcher(patcher: Any) -> Any:
    return PackPatcher(patcher.model, patcher.load_device, patcher.offload_device)


def _own_tensor(weight: Tensor, kind: str) -> PackedTensor:
    data = {"Q8_0": packed_q8_0, "Q4_0": packed_q4_0, "F32": lambda w: w.clone()}[kind](weight)
    return PackedTensor(data, kind, weight.shape)


STAND_IN = SimpleNamespace(
    operations=StandInOps, tensor=_own_tensor, patcher=_patcher, kinds=("Q8_0", "Q4_0")
)


def pack() -> Any:
    """The real pack. Skips where there is none."""
    place = folder()
    gguf = pytest.importorskip("gguf")
    name = "gguf_pack_under_test"
    if name not in sys.modules:
        init = Path(place) / "__init__.py"
        spec: Any = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[place])
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    ops, nodes = (importlib.import_module(f"{name}.{part}") for part in ("ops", "nodes"))

    def tensor(weight: Tensor, kind: str) -> Any:
        quantisation = gguf.GGMLQuantizationType[kind]
        if kind in SCALES:
            data = packed_at_random(tuple(weight.shape), kind)
        else:
            data = gguf.quants.quantize(np.ascontiguousarray(weight.numpy()), quantisation)
        return ops.GGMLTensor(torch.from_numpy(data), tensor_type=quantisation, tensor_shape=weight.shape)

    kinds = ("Q8_0", "Q4_0", "Q5_1", "BF16", *SCALES)
    return SimpleNamespace(
        operations=ops.GGMLOps, tensor=tensor, patcher=nodes.GGUFModelPatcher.clone, kinds=kinds
    )
