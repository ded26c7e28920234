"""Before training what is not trained leaves the device; what is trained stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import comfy.model_management as mm
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from in_graph_lora.trainer.host import checked

from ..tiny_models import TINY, build


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty list of loaded models, and a CPU that room is made on as on a GPU."""
    monkeypatch.setattr(mm, "current_loaded_models", [])
    monkeypatch.setattr(mm, "is_device_cpu", lambda device: False)
    yield
    mm.current_loaded_models.clear()


def on_the_device(*patchers: ModelPatcher) -> list[ModelPatcher | None]:
    with torch.inference_mode():
        mm.load_models_gpu(list(patchers))
    return [entry.model for entry in mm.current_loaded_models]


@pytest.mark.usefixtures("alone")
def test_an_entry_whose_model_was_freed_is_passed_over() -> None:
    freed, trained, other = (build(TINY["sd15"], seed) for seed in range(3))
    leaked = freed.model  # something holds the network, nothing its patcher
    on_the_device(freed, trained, other)
    del freed
    gc.collect()
    assert [entry.model is None for entry in mm.current_loaded_models].count(True) == 1
    checked.make_room(trained, None)
    left = [entry.model for entry in mm.current_loaded_models]
    assert trained in left
    assert other not in left
    assert leaked is not None


@pytest.mark.usefixtures("alone")
def test_a_clone_that_ComfyUI_has_loaded_stays_for_the_model_that_is_trained() -> None:  # noqa: N802
    trained, other = build(TINY["sd15"]), build(TINY["sd15"], 1)
    clone = trained.clone()
    assert on_the_device(clone, other).count(clone) == 1
    checked.make_room(trained, None)
    assert [entry.model for entry in mm.current_loaded_models] == [clone]
