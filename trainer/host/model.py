"""Borrow the model that ComfyUI has loaded, and give it back as it was.

The executor runs nodes in inference mode, so a loaded checkpoint's parameters are inference tensors, which
autograd refuses to save. During a loan each parameter is replaced by an ordinary tensor over the same
storage: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.samplers
import torch
from torch import Tensor, nn

from ..config import MemoryConfig
from ..errors import ModelError
from ..families import Family, family_of
from ..memory.blocks import blocks, by_class
from ..memory.out_of_place import out_of_place
from ..memory.streaming import Packed, spread
from ..noise import NoiseProcess
from . import kernels
from .noise import noise_process, raw_output_sampling
from .quantised import packed, quantised_layers_differentiable

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

RESIDENT = MemoryConfig(fit="manual")
"""The whole model on the device."""

Condition = dict[str, Any]
"""One sample's arguments for the network: name → ComfyUI's COND object, batch size 1."""


def alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor over the same storage; a quantised one, which autograd never sees, as it is."""
    if packed(tensor):
        return tensor
    out = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return out.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


@contextmanager
def trainable_view(
    module: nn.Module, staged_on: torch.device | None = None, away: Iterable[nn.Module] = ()
) -> Iterator[None]:
    """Every parameter and buffer of `module` aliased, frozen; the original objects back at the end.

    staged_on: a device that what lies elsewhere is copied to for the loan.
    away: modules whose parameters stay where they are.
    """
    waiting = {id(m._parameters) for block in away for m in block.modules()}
    saved: list[tuple[dict[str, Any], str, Any]] = []
    aliases: dict[int, Tensor] = {}
    try:
        for m in module.modules():
            stores: list[dict[str, Any]] = [m._parameters, m._buffers]
            for store in stores:
                for name, tensor in store.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in aliases:
                        view = alias(tensor)
                        if staged_on is not None and id(store) not in waiting:
                            view = view.to(staged_on)
                        frozen = store is m._parameters and not packed(view)
                        aliases[id(tensor)] = nn.Parameter(view, requires_grad=False) if frozen else view
                    saved.append((store, name, tensor))
                    store[name] = aliases[id(tensor)]
        yield
    finally:
        for store, name, tensor in saved:
            store[name] = tensor


def model_family(patcher: ModelPatcher) -> Family:
    return family_of(type(patcher.model.model_config))


class HostDenoiser:
    """The engine's `Denoiser` on a borrowed ComfyUI model."""

    def __init__(self, patcher: ModelPatcher, model: BaseModel, process: NoiseProcess) -> None:
        self.patcher = patcher
        self.model = model
        self.net: nn.Module = model.diffusion_model
        self.process = process
        self.family = model_family(patcher)
        self.blocks: Sequence[nn.Module] = blocks(self.net, self.family.blocks)
        """What gradient checkpointing and compilation take one by one."""
        self.device: torch.device = patcher.load_device
        self.away: Sequence[Packed] = ()
        """Blocks that lie in host memory."""
        dtype = model.get_dtype_inference()
        self.half_precision = dtype if dtype in (torch.bfloat16, torch.float16) else None

    def predict(self, x_t: Tensor, sigma: Tensor, conditioning: Sequence[Condition]) -> Tensor:
        """One pass through the network for each set of conditions that can be concatenated."""
        outputs: list[Tensor | None] = [None] * len(conditioning)
        for members in _concatenable(conditioning):
            part = self._forward(x_t[members], sigma[members], [conditioning[i] for i in members])
            for row, i in enumerate(members):
                outputs[i] = part[row]
        return torch.stack([o for o in outputs if o is not None])

    def _forward(self, x: Tensor, sigma: Tensor, conditioning: Sequence[Condition]) -> Tensor:
        args = comfy.samplers.cond_cat(list(conditioning), device=x.device)
        options = dict(self.patcher.model_options.get("transformer_options", {}))
        options["cond_or_uncond"] = [0] * len(conditioning)
        options["sigmas"] = sigma
        options.setdefault("optimized_attention_override", kernels.attention)
        return self.model.apply_model(x, sigma, **args, transformer_options=options)


def _concatenable(conditioning: Sequence[Condition]) -> list[list[int]]:
    """Indices, grouped so that within a group ComfyUI can concatenate every condition."""
    groups: list[list[int]] = []
    for i, cond in enumerate(conditioning):
        for group in groups:
            if comfy.samplers.cond_equal_size(conditioning[group[0]], cond):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


@contextmanager
def in_training() -> Iterator[None]:
    before = mm.in_training
    mm.in_training = True
    try:
        yield
    finally:
        mm.in_training = before


@contextmanager
def _submodule(owner: nn.Module, name: str, replacement: Any) -> Iterator[None]:
    before = owner._modules[name]
    owner._modules[name] = replacement
    try:
        yield
    finally:
        owner._modules[name] = before


@contextmanager
def kept_loaded(patcher: ModelPatcher) -> Iterator[None]:
    """Off the list from which ComfyUI chooses what to unload, so that nothing moves the weights meanwhile."""
    loaded = mm.current_loaded_models
    own = [entry for entry in loaded if entry.model is patcher]
    loaded[:] = [entry for entry in loaded if entry.model is not patcher]
    try:
        yield
    finally:
        if not any(entry.model is not None and patcher.is_clone(entry.model) for entry in loaded):
            loaded[:0] = own


def stage(patcher: ModelPatcher) -> torch.device | None:
    """Under dynamic VRAM weights are brought in at use and may be evicted before the backward pass reads
    them again, so they are brought in for the whole loan."""
    if not patcher.is_dynamic():
        return None
    if patcher.patches:
        raise ModelError(
            "a model with a LoRA on it cannot be trained under dynamic VRAM; connect the model without it,"
            " or start ComfyUI with --disable-dynamic-vram"
        )
    return patcher.load_device


def _brought(patcher: ModelPatcher, streamed: float) -> torch.device | None:
    """The model loaded for a loan. Returns the device that its weights have still to be copied to."""
    on_gpu = not mm.is_device_cpu(patcher.load_device)
    if not streamed or patcher.is_dynamic() or not on_gpu:
        mm.load_models_gpu([patcher], force_full_load=True)
        return stage(patcher)
    if patcher.patches:
        raise ModelError(
            "a model with a LoRA on it cannot be streamed; connect the model without it, or set streamed to 0"
        )
    # Its weights go to host memory; what is not streamed is copied to the card from there.
    mm.free_memory(1e30, patcher.load_device)
    return patcher.load_device


@contextmanager
def borrowed(patcher: ModelPatcher, memory: MemoryConfig = RESIDENT) -> Iterator[HostDenoiser]:
    """The loaded model, ready for autograd. Must be entered outside inference mode.

    memory: `streamed` and `base_precision` count, whatever `fit` says.
    On every way out parameters, buffers, sampling object and flags are the original objects again.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("borrowed() needs torch.inference_mode(False) around it")
    streamed = memory.streamed
    staged_on = _brought(patcher, streamed)
    model = patcher.model
    sampling = patcher.get_model_object("model_sampling")  # a ModelSampling node may have put another there
    process = noise_process(sampling)
    with ExitStack() as loan:
        patcher.pre_run()
        loan.callback(patcher.cleanup)
        loan.enter_context(in_training())
        loan.enter_context(kept_loaded(patcher))
        denoiser = HostDenoiser(patcher, model, process)
        family, net = denoiser.family, denoiser.net
        if streamed and not denoiser.blocks:
            raise ModelError(f"{type(net).__name__} has no blocks that could be streamed; set streamed to 0")
        away = [denoiser.blocks[i] for i in spread(len(denoiser.blocks), streamed)]
        loan.enter_context(trainable_view(model, staged_on, away))
        denoiser.away = [Packed(block) for block in away]
        loan.enter_context(_submodule(model, "model_sampling", raw_output_sampling(sampling)))
        loan.enter_context(kernels.differentiable_kernels())
        loan.enter_context(quantised_layers_differentiable(model))
        unknown = family.in_place_calls is None
        calling = denoiser.blocks if unknown else by_class(net, family.in_place_calls or ())
        loan.enter_context(out_of_place(by_class(net, family.in_place), calling))
        yield denoiser
