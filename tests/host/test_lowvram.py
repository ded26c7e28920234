"""A ComfyUI that has split the model itself, on the CPU: what it has left out is cast at each use."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import pytest
import torch
from torch import Tensor

from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.streaming import streamed

from .family_case import Case, adapted
from .loaded import weight_hash

CPU = torch.device("cpu")


def cast_at_use(patcher: Any) -> dict[str, bool]:
    layers = patcher.model.named_modules()
    return {name: m.comfy_cast_weights for name, m in layers if hasattr(m, "comfy_cast_weights")}


def split(patcher: Any) -> None:
    """As `load_models_gpu` leaves a model for which there was not enough room."""
    mm.load_models_gpu([patcher])
    patcher.unpatch_model(CPU)
    patcher.load(CPU, lowvram_model_memory=patcher.model_size() // 2)
    assert patcher.model.model_lowvram
    assert len({*cast_at_use(patcher).values()}) == 2


def gradients(c: Case, share: float) -> Tensor:
    with (
        adapted(c, "all linear", streamed=share) as (denoiser, adapter),
        streamed(denoiser.away, denoiser.device),
        checkpointed(denoiser.blocks, 1),
    ):
        if share:
            assert len(denoiser.away) == -(-share * len(denoiser.blocks) // 1)
        return c.gradients(denoiser, adapter)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded and lent as on a card, which is the CPU."""
    monkeypatch.setattr(mm, "is_device_cpu", lambda device: False)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("name", ["sd15", "flux1", "qwen_image"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_split_model_has_the_gradients_of_a_whole_one(name: str, share: float) -> None:
    c = Case(name)
    mm.load_models_gpu([c.patcher])
    whole, before, flags = gradients(c, 0.0), weight_hash(c.patcher.model), cast_at_use(c.patcher)
    split(c.patcher)
    assert any(entry.model is c.patcher for entry in mm.current_loaded_models)
    assert torch.equal(gradients(c, share), whole)
    assert weight_hash(c.patcher.model) == before
    mm.load_models_gpu([c.patcher])
    assert cast_at_use(c.patcher) == flags, "it is sampled with as before"
