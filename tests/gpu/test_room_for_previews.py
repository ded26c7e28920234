"""When a preview is drawn, the GPU holds nothing of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from in_graph_lora.trainer.config import AdapterConfig, MemoryConfig, PreviewConfig
from in_graph_lora.trainer.host import sample

from ..host.loaded import Loaded, train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "memory",
    [
        MemoryConfig(fit="manual", checkpointing=1),
        MemoryConfig(fit="manual", streamed=1, offload_activations=True),
    ],
    ids=["resident", "streamed"],
)
def test_a_preview_has_the_room_that_there_was_before_the_run(
    loaded: Loaded,
    pictures: Path,
    tmp_path: Path,
    device: torch.device,
    memory: MemoryConfig,
    monkeypatch: Any,
    record_property: Any,
) -> None:
    held: list[int] = []
    drawing = sample.sample_image

    def watched(*args: Any, **kwargs: Any) -> Any:
        mm.unload_all_models()  # what is left then is nobody's model
        mm.soft_empty_cache()
        held.append(torch.cuda.memory_allocated(device) if device.type == "cuda" else 0)
        return drawing(*args, **kwargs)

    monkeypatch.setattr(sample, "sample_image", watched)
    preview = PreviewConfig(prompts=("a cat",), every=2, steps=1, width=64, height=64)
    adapter = AdapterConfig(rank=64, targets="all linear")
    train(loaded, pictures, tmp_path, memory=memory, preview=preview, adapter=adapter, steps=4)
    record_property("held", held)
    assert len(held) == 3, "before the run, and at steps 2 and 4"
    assert max(held[1:]) <= held[0] + 2**20
