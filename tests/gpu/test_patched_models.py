"""On a GPU: models with a LoRA on them, and weights held in fp8 or int8; streamed, under dynamic VRAM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

import comfy.memory_management
import comfy.model_management as mm
import comfy.model_patcher

from in_graph_lora.trainer.config import MemoryConfig
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.host.staging import nbytes
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.streaming import streamed
from in_graph_lora.trainer.noise import Noised

from ..host.family_case import Case, adapted, relative
from ..host.loaded import weight_hash
from ..host.patched import with_lora

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", torch.cuda.current_device())
shares = pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
precisions = pytest.mark.parametrize("precision", ["fp8", "int8"])
vram = pytest.mark.parametrize("dynamic", [False, True], ids=["loaded in full", "dynamic VRAM"])


class OnDevice(Case):
    """A tiny model that computes on the GPU and waits in host memory."""

    def __init__(self, dtype: torch.dtype, dynamic: bool = False, lora: bool = False) -> None:
        super().__init__("flux1", dtype)
        if dynamic and not comfy.memory_management.aimdo_enabled:
            pytest.skip("dynamic VRAM is off in this process")
        kind = comfy.model_patcher.ModelPatcherDynamic if dynamic else comfy.model_patcher.ModelPatcher
        self.patcher = kind(self.patcher.model.to("cpu"), DEVICE, torch.device("cpu"))
        if lora:
            self.patcher = with_lora(self.patcher)

    def noised(self) -> Noised:
        made = super().noised()
        return replace(made, **{name: getattr(made, name).to(DEVICE) for name in ("x_t", "sigma", "target")})

    def sampled(self) -> Tensor:
        """The clean picture that the stock model computes."""
        noised = self.noised()
        with torch.inference_mode():
            mm.load_models_gpu([self.patcher])
            conds = {name: cond.cond.to(DEVICE) for name, cond in self.conditioning[0].items()}
            for _ in range(2):
                out = self.patcher.model.apply_model(noised.x_t[:1], noised.sigma[:1], **conds)
            return out


def gradients(c: Case, share: float = 0.0, **options: Any) -> Tensor:
    with (
        adapted(c, "all linear", streamed=share, **options) as (denoiser, adapter),
        streamed(denoiser.away, denoiser.device),
        checkpointed(denoiser.blocks, 1),
    ):
        adapter.to(denoiser.device)
        c.gradients(denoiser, adapter)
        return c.gradients(denoiser, adapter).cpu()


@vram
@shares
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
def test_gradients_on_top_of_a_lora_are_those_of_a_resident_run_and_near_the_cpus(
    dynamic: bool, share: float, dtype: torch.dtype, error: float
) -> None:
    c = OnDevice(dtype, dynamic, lora=True)
    found = gradients(c, share)
    assert torch.equal(found, gradients(c))
    if dtype == torch.float32:
        on_cpu = Case("flux1", dtype)
        on_cpu.patcher = with_lora(on_cpu.patcher)
        assert relative(found, gradients(on_cpu)) < error


@vram
@shares
@precisions
def test_gradients_beside_weights_held_for_the_run_are_those_of_the_cpu(
    dynamic: bool, share: float, precision: str
) -> None:
    found = gradients(OnDevice(torch.float32, dynamic), share, base_precision=precision)
    assert relative(found, gradients(Case("flux1"), base_precision=precision)) < 1e-5


@vram
@pytest.mark.parametrize("memory", [{}, {"streamed": 0.5}, {"base_precision": "int8"}])
@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError])
def test_afterwards_the_model_samples_as_before(dynamic: bool, memory: dict[str, Any], error: Any) -> None:
    c = OnDevice(torch.bfloat16, dynamic, lora=True)
    before, right = weight_hash(c.patcher.model), c.sampled()
    try:
        with torch.inference_mode(False), borrowed(c.patcher, MemoryConfig(fit="manual", **memory)):
            if error:
                raise error("full")
    except torch.OutOfMemoryError:
        pass
    assert torch.equal(c.sampled(), right)
    mm.unload_all_models()
    assert weight_hash(c.patcher.model) == before


@precisions
def test_no_more_than_the_packed_model_and_one_layer_lies_on_the_card(precision: str) -> None:
    c = OnDevice(torch.bfloat16)
    c.sampled()  # ComfyUI has it on the card
    mm.unload_all_models()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    memory = MemoryConfig(fit="manual", base_precision=precision)
    with torch.inference_mode(False), borrowed(c.patcher, memory) as denoiser:
        parameters = list(denoiser.net.parameters())
        packed = sum(-(-nbytes(p) // 512) * 512 for p in parameters) + 1024 * len(parameters)
        largest = max(p.numel() for p in parameters)
        assert torch.cuda.max_memory_allocated() - before < packed + 16 * largest, "as loaded, and in fp32"
