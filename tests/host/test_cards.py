"""Memory that is predicted on the meta device is that of the same network with values."""

from __future__ import annotations

import pytest

from in_graph_lora.trainer.config import MemoryConfig
from in_graph_lora.trainer.memory.plan import need
from workbench.bench.cards import predicted

LEVERS = (
    {},
    {"checkpointing": 1},
    {"checkpointing": 1, "streamed": 0.5},
    {"checkpointing": 1, "streamed": 1.0, "base_precision": "fp8"},
)


@pytest.mark.parametrize(("name", "pixels"), [("tiny", 128), ("tiny-flux", 256), ("tiny-qwen", 256)])
def test_a_network_without_values_is_measured_as_with_them(name: str, pixels: int) -> None:
    empty, real = predicted(name, pixels, 1), predicted(name, pixels, 1, device="cpu")
    assert (empty.blocks, empty.rest, empty.adapters) == (real.blocks, real.rest, real.adapters)
    for levers in LEVERS:
        memory = MemoryConfig(fit="manual", **levers)
        assert need(empty, memory).device == pytest.approx(need(real, memory).device, rel=0.02), levers
        assert need(empty, memory).activations == pytest.approx(need(real, memory).activations, rel=0.05)
