"""LoRA in half precision in real networks: what joins the gradients of a layer's input loses none."""

from __future__ import annotations

import pytest
import torch

from in_graph_lora.trainer.adapters.low_rank import Linear
from in_graph_lora.trainer.memory.checkpointing import checkpointed

from .family_case import Case, adapted, relative

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("name", ["sd15", "chroma", "qwen_image", "ltxv", "unheard_of"])
def test_joined_gradients_are_those_that_autograd_adds(
    name: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In networks that write nothing in place, by `+=` (chroma) and by calls (ltxv, unheard_of)."""
    c = Case(name, dtype=torch.bfloat16)
    joined = 0
    joins = Linear.joins

    def counted(layer: Linear, x: torch.Tensor) -> bool:
        nonlocal joined
        joined += joins(layer, x)
        return joins(layer, x)

    with adapted(c, "all linear") as (denoiser, adapter), checkpointed(denoiser.blocks, every):
        monkeypatch.setattr(Linear, "joins", counted)
        found = c.gradients(denoiser, adapter)
        monkeypatch.setattr(Linear, "joins", lambda layer, x: False)
        right = c.gradients(denoiser, adapter)
    assert joined > len(denoiser.blocks)
    assert relative(found, right) < 0.02
