"""A model that ComfyUI has split for want of room trains, resident or streamed, and is given back whole."""

from __future__ import annotations

import comfy.model_management as mm
import pytest
import torch
from torch import Tensor

from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.streaming import streamed

from ..host.family_case import Case, adapted
from ..host.loaded import weight_hash

pytestmark = pytest.mark.gpu


def gradients(c: Case, share: float) -> Tensor:
    with (
        adapted(c, "all linear", streamed=share) as (denoiser, adapter),
        streamed(denoiser.away, denoiser.device),
        checkpointed(denoiser.blocks, 1),
    ):
        return c.gradients(denoiser, adapter).float().cpu()


@pytest.mark.parametrize("name", ["sd15", "flux1", "qwen_image"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_split_model_has_the_gradients_of_a_whole_one(
    name: str, share: float, device: torch.device, dynamic: bool
) -> None:
    if dynamic:
        pytest.skip("under dynamic VRAM ComfyUI does not split models")
    c = Case(name, device=device)
    mm.load_models_gpu([c.patcher])
    whole, before = gradients(c, 0.0), weight_hash(c.patcher.model)
    with torch.inference_mode():
        mm.load_models_gpu([c.patcher])
        c.patcher.unpatch_model(c.patcher.offload_device)
        c.patcher.load(device, lowvram_model_memory=c.patcher.model_size() // 2)
    assert c.patcher.model.model_lowvram
    assert torch.equal(gradients(c, share), whole)
    assert weight_hash(c.patcher.model) == before
    with torch.inference_mode():
        mm.load_models_gpu([c.patcher])
    assert all(p.device.type == device.type for p in c.patcher.model.parameters())
