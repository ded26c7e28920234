"""Models with a LoRA on them, and the sampler's own forward pass of them, also as under dynamic VRAM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import comfy.lora
import comfy.memory_management as memory_management
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor

from in_graph_lora.trainer.host import staging
from in_graph_lora.trainer.host.model import HostDenoiser
from in_graph_lora.trainer.host.noise import noise_process, raw_output_sampling

from .family_case import Case

MODES = ("loaded", "unloaded", "dynamic")
"""Where a loan takes the weights from; see `host.staging`."""


class HostBuffer:
    """Of comfy_aimdo, which needs a GPU."""

    def __init__(self, *sizes: int) -> None:
        self.size = 0


class DynamicOnCpu(comfy.model_patcher.ModelPatcherDynamic):
    """The patcher of dynamic VRAM without VRAM."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def partially_unload(
        self, device_to: Any, memory_to_free: Any = 0, force_patch_weights: Any = False
    ) -> Any:
        return self.restore_loaded_backups()


@contextmanager
def mode_of(mode: str) -> Iterator[None]:
    """Patchers as `dynamic` makes them can be made; an unloaded model is lent as on a GPU."""
    with ExitStack() as stack:
        stack.enter_context(patch("comfy_aimdo.host_buffer.HostBuffer", HostBuffer, create=True))
        if mode == "unloaded":
            stack.enter_context(patch.object(staging, "computes_in_host_memory", lambda patcher: False))
        yield


def dynamic(patcher: Any) -> Any:
    return DynamicOnCpu(patcher.model, patcher.load_device, patcher.offload_device)


def lora_of(patcher: Any, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA on each linear layer, in inference mode, as a loader node reads it; two layers' biases too."""
    g = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name, layer in patcher.model.named_modules():
            if hasattr(layer, "in_features") and getattr(layer, "weight", None) is not None:
                tensors[f"{name}.lora_down.weight"] = torch.randn(2, layer.in_features, generator=g) / 4
                tensors[f"{name}.lora_up.weight"] = torch.randn(layer.out_features, 2, generator=g) / 16
                if layer.bias is not None and sum("diff_b" in key for key in tensors) < 2:
                    tensors[f"{name}.diff_b"] = torch.randn(layer.out_features, generator=g) / 4
    return tensors


def with_lora(patcher: Any, *, bypass: bool = False) -> Any:
    """By ComfyUI's loader; what is no diffusion model is patched under its own names."""
    if not hasattr(patcher.model, "model_config"):
        keys = {name: f"{name}.weight" for name, _ in patcher.model.named_modules()}
        patched = patcher.clone()
        patched.add_patches(comfy.lora.load_lora(lora_of(patcher), keys), 0.8)
        return patched
    load = comfy.sd.load_bypass_lora_for_models if bypass else comfy.sd.load_lora_for_models
    return load(patcher, None, lora_of(patcher), 0.8, 0.0)[0]


class PatchedCase(Case):
    """Another case's model with a LoRA on it."""

    def __init__(self, c: Case, mode: str = "loaded", *, bypass: bool = False) -> None:
        self.sampling, self.x_0, self.conditioning = c.sampling, c.x_0, c.conditioning
        self.patcher = with_lora(dynamic(c.patcher) if mode == "dynamic" else c.patcher, bypass=bypass)

    def sampled(self) -> Tensor:
        """The network's output when ComfyUI samples with the model.

        Outside of inference mode, in which the int8 layers of a CPU take another way than outside of it.
        """
        noised = self.noised()
        with torch.inference_mode(False), torch.no_grad():
            mm.load_models_gpu([self.patcher], force_full_load=True)
            model = self.patcher.model
            denoiser = HostDenoiser(self.patcher, model, noise_process(self.sampling))
            with (
                patch.dict(model._modules, model_sampling=raw_output_sampling(self.sampling)),
                _brought_in_at_use(self.patcher),
            ):
                for _ in range(2):  # what lies on the card is rounded after the first use
                    output = denoiser.predict(noised.x_t, noised.sigma, self.conditioning)
            return output


@contextmanager
def _brought_in_at_use(patcher: Any) -> Iterator[None]:
    """ComfyUI's own code that patches weights when they come in under dynamic VRAM, without the coming in."""
    if not patcher.is_dynamic():
        yield
        return
    plain = comfy.ops.cast_bias_weight

    def cast(s: Any, input: Any = None, dtype: Any = None, device: Any = None, **more: Any) -> Any:
        if not hasattr(s, "weight_lowvram_function"):
            return plain(s, input, dtype, device, **more)
        dtype = dtype or getattr(getattr(input, "params", None), "orig_dtype", input.dtype)
        requant = more.get("want_requant", False)
        prefetch = {"resident": True}
        if not hasattr(s, "_v_weight"):
            geometry = memory_management.tensors_to_geometries([s.weight, s.bias])
            size = memory_management.vram_aligned_size(geometry)
            there = torch.empty(size, dtype=torch.uint8)
            pairs = zip(
                [s.weight, s.bias],
                memory_management.interpret_gathered_like(geometry, there),
                strict=True,
            )
            for source, target in pairs:
                if source is not None:
                    target.copy_(source)
            prefetch = {"resident": False, "xfer_dest": there, "needs_cast": False, "cast_geometry": geometry}
        s._prefetch = {"signature": 1, **prefetch}
        found = comfy.ops.resolve_cast_module_with_vbar(
            s, dtype, None, more.get("bias_dtype") or dtype, more.get("compute_dtype"), requant
        )
        del s._prefetch
        return (*found, (None, None, None)) if more.get("offloadable") else found

    try:
        with patch.object(comfy.ops, "cast_bias_weight", cast):
            yield
    finally:
        for module in patcher.model.modules():
            for name in ("_v_weight", "_v_bias"):
                vars(module).pop(name, None)
