"""Programs that read LoRA files: each gives, for a layer of its own network, what the file makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import comfy.lora
import comfy.sd
import lycoris
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NotReadError(Exception):
    """The reader leaves layers out without an error of its own."""


Tensors = dict[str, Tensor]
Output = Callable[[Tensor], Tensor]
"""Input of a layer → its output, without its bias."""


def output_of(module: Any) -> Output:
    base = getattr(module, "base_layer", module)
    bias = torch.zeros(()) if base.bias is None else base.bias.detach()
    shape = (-1, *[1] * (base.weight.ndim - 2))

    def output(x: Tensor) -> Tensor:
        with torch.no_grad():
            return module(x) - bias.reshape(shape)

    return output


def with_weight(module: Any, weight: Tensor) -> Output:
    if isinstance(module, nn.Linear):
        return lambda x: F.linear(x, weight)
    convolve: Any = F.conv1d if isinstance(module, nn.Conv1d) else F.conv2d
    return lambda x: convolve(x, weight, stride=module.stride, padding=module.padding)


def by_comfyui(patcher: Any, patched: Any, layer: str) -> Output:
    """patched: a clone of `patcher` with the file's patches, as LoraLoader makes it."""
    key = f"diffusion_model.{layer}.weight"
    weight = patcher.model.state_dict()[key].clone()
    with torch.inference_mode():
        weight = comfy.lora.calculate_weight(patched.patches[key], weight, key)
    return with_weight(patcher.model.get_submodule(f"diffusion_model.{layer}"), weight.clone())


def stock(patcher: Any, tensors: Tensors, layers: int) -> Any:
    """LoraLoader's own function."""
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
    if len(patched.patches) < layers:
        raise NotReadError(f"ComfyUI reads {len(patched.patches)} of {layers} layers")
    return patched


@contextmanager
def lycoris_modules(net: nn.Module, tensors: Tensors) -> Iterator[dict[str, Any]]:
    """Name in the file → LyCORIS' module for it; none may be missing."""
    network = lycoris.LycorisNetwork
    before = network.LORA_PREFIX
    network.apply_preset({"lora_prefix": "lora_unet"})
    try:
        made, _ = lycoris.create_lycoris_from_weights(1.0, None, net, weights_sd=tensors)
    finally:
        network.apply_preset({"lora_prefix": before})
    modules = {module.lora_name: module for module in made.loras}
    if modules.keys() != {key.partition(".")[0] for key in tensors}:
        raise NotReadError(f"LyCORIS reads {len(modules)} layers")
    yield modules


def by_lycoris_forward(module: Any) -> Output:
    """As LyCORIS trains, and as its `apply_to` leaves a network."""
    output = output_of(module.org_module[0])

    def applied(x: Tensor) -> Tensor:
        module.apply_to()
        try:
            return output(x)
        finally:
            module.restore()

    return applied


def by_lycoris_merge(module: Any) -> Output:
    """As LyCORIS' `merge_to` writes into a network."""
    own = module.org_module[0]
    with torch.no_grad():
        weight, _ = module.get_merged_weight(1.0, own.weight.shape, own.weight.device)
    return with_weight(own, weight.reshape(own.weight.shape))


def by_diffusers(loader: type, part: str, net: nn.Module, tensors: Tensors) -> nn.Module:
    """A copy of the network with the file on it, by the pipeline's `load_lora_weights`.

    part: what the pipeline calls its network, unet or transformer.
    """
    net = deepcopy(net)
    parts = {part: net, "text_encoder": None}
    members = {**parts, "components": parts, "hf_device_map": None, "use_peft_backend": True}
    pipeline = type("Pipeline", (loader,), members)()
    pipeline.load_lora_weights(dict(tensors), adapter_name="x")
    return net
