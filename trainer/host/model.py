"""Borrow the model that ComfyUI has loaded, and give it back as it was.

The executor runs nodes in inference mode, so a loaded checkpoint's parameters are inference tensors, which
autograd refuses to save. During a loan each parameter is replaced by an ordinary tensor over the same
storage: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.samplers
import torch
from torch import Tensor, nn

from ..config import AS_LOADED, MemoryConfig
from ..errors import ModelError
from ..families import Family, family_of
from ..memory.advice import without_overlap
from ..memory.blocks import blocks, by_class
from ..memory.out_of_place import out_of_place
from ..memory.streaming import Packed, spread
from ..noise import NoiseProcess, Tokens
from . import kernels
from .base_precision import BasePrecision
from .bypass import beneath_injections
from .noise import noise_process, raw_output_sampling
from .quantised import quantised_layers_differentiable
from .staging import Staging, brought, trainable_view

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

RESIDENT = MemoryConfig(fit="manual")
"""The whole model on the device."""

START = "start_latent"
"""Among a condition's arguments, and no argument of the network: [1, C, t, H, W], the first frames of x_t as
they are given, without noise."""

Condition = dict[str, Any]
"""One sample's arguments for the network: name → ComfyUI's COND object, batch size 1."""


def model_family(patcher: ModelPatcher) -> Family:
    return family_of(type(patcher.model.model_config))


def patch_side(patcher: ModelPatcher) -> int | None:
    """Latent pixels of a side of one token; None for a UNet, which has none."""
    net = patcher.model.diffusion_model
    found = patcher.model.model_config.unet_config.get("patch_size")
    for place in (net, getattr(net, "patchifier", None)):  # LTX-Video's has it
        found = found or getattr(place, "patch_size", None)
    side = found[-1] if isinstance(found, (list, tuple)) else found
    return int(side) if side else None


def tokens(patcher: ModelPatcher) -> Tokens:
    patch = patch_side(patcher) or Tokens().patch
    pixels = patch * getattr(patcher.model.latent_format, "spacial_downscale_ratio", 8)
    return Tokens(patch=patch, pixels=pixels, line=model_family(patcher).shift_line or Tokens().line)


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
        self.base_precision = AS_LOADED
        self.remarks: Sequence[str] = ()
        """What the user should hear about this loan."""
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

    def drawn(self, x_t: Tensor, conditioning: Sequence[Condition]) -> Tensor | None:
        given = [c[START].cond.shape[2] if START in c else 0 for c in conditioning]
        if not any(given):
            return None
        counts = torch.ones(len(given), 1, *x_t.shape[2:], device=x_t.device)
        for row, frames in zip(counts, given, strict=True):
            row[:, :frames] = 0
            row *= row.numel() / row.sum()
        return counts

    def _forward(self, x: Tensor, sigma: Tensor, conditioning: Sequence[Condition]) -> Tensor:
        args = comfy.samplers.cond_cat(list(conditioning), device=x.device)
        if (start := args.pop(START, None)) is not None:
            x = torch.cat([start.to(x), x[:, :, start.shape[2] :]], dim=2)
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


@contextmanager
def borrowed(patcher: ModelPatcher, memory: MemoryConfig = RESIDENT) -> Iterator[HostDenoiser]:
    """The loaded model, ready for autograd. Must be entered outside inference mode.

    memory: `streamed` and `base_precision` count, whatever `fit` says.
    On every way out parameters, buffers, sampling object and flags are the original objects again.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("borrowed() needs torch.inference_mode(False) around it")
    streamed = memory.streamed
    with ExitStack() as loan:
        lean = streamed > 0 or memory.base_precision != AS_LOADED
        patch = loan.enter_context(brought(patcher, lean=lean))
        model = patcher.model
        # A ModelSampling node may have put another there.
        sampling = patcher.get_model_object("model_sampling")
        patcher.pre_run()
        loan.callback(patcher.cleanup)
        loan.enter_context(in_training())
        loan.enter_context(kept_loaded(patcher))
        denoiser = HostDenoiser(patcher, model, replace(noise_process(sampling), tokens=tokens(patcher)))
        family, net = denoiser.family, denoiser.net
        if lean and not denoiser.blocks:
            raise ModelError(
                f"{type(net).__name__} has no blocks that could be streamed or quantised; set streamed to 0"
                f" and base_precision to {AS_LOADED} (Train Memory)"
            )
        away = [denoiser.blocks[i] for i in spread(len(denoiser.blocks), streamed)]
        base = BasePrecision(memory.base_precision, denoiser.blocks, denoiser.device)
        staging = Staging(denoiser.device, away, patch, base.held)
        loan.enter_context(trainable_view(model, staging.view))
        denoiser.away = [Packed(block) for block in away]
        denoiser.base_precision = base.name
        denoiser.remarks = [
            *(*base.remarks, *staging.remarks),
            *without_overlap(denoiser.device, memory),
        ]
        loan.enter_context(_submodule(model, "model_sampling", raw_output_sampling(sampling)))
        loan.enter_context(kernels.differentiable_kernels())
        with beneath_injections(loan, patcher):
            loan.enter_context(base.dequantised_at_use())
            loan.enter_context(quantised_layers_differentiable(model))
        unknown = family.in_place_calls is None
        calling = denoiser.blocks if unknown else by_class(net, family.in_place_calls or ())
        loan.enter_context(out_of_place(by_class(net, family.in_place), calling))
        yield denoiser
