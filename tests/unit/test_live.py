"""What is live on a CPU, by its storages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.config import MemoryConfig
from in_graph_lora.trainer.devices import allocator, random_kept
from in_graph_lora.trainer.memory.advice import without_overlap
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.live import seconds_of, watched

CPU = torch.device("cpu")
KB = 1024


def test_live_bytes_are_those_of_the_tensors_that_something_holds():
    before = torch.ones(KB)
    with watched(CPU) as live:
        a = torch.ones(KB)
        assert live.now == 4 * KB
        view, a_again = a[:10], a.add_(1)
        assert live.now == 4 * KB, "views and writes in place take nothing"
        before.mul_(2)
        assert live.now == 4 * KB, "what was there before does not count"
        del a, a_again
        assert live.now == 4 * KB
        del view
        assert (live.now, live.peak) == (0, 4 * KB)
        live.mark()
        assert live.peak == 0
        assert seconds_of(lambda: torch.ones(KB), CPU) > 0
        assert live.peak == 0, "a piece of work that is timed is not watched"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(KB, KB)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x))  # autograd saves its result


def test_the_check_before_the_first_checkpointed_pass_leaves_nothing_in_memory():
    blocks = [Gated(), Gated()]
    x = torch.ones(1, KB)
    with watched(CPU) as live, checkpointed(blocks, 1):
        for block in blocks:
            x = block(x)
        x.sum().backward()
        for block in blocks:
            block.zero_grad()
        del x
        assert live.now == 0


class Counts:
    """Where a kind of device keeps what torch knows of it; there is no such device here."""

    def __init__(self, asked: list[Any]) -> None:
        self.asked, self.state = asked, 1

    def synchronize(self, *where: Any) -> None:
        self.asked.append(where)

    def get_rng_state(self, *where: Any) -> int:
        return self.state

    def set_rng_state(self, state: int, *where: Any) -> None:
        self.asked.append(where)
        self.state = state


@pytest.mark.parametrize(("kind", "where"), [("xpu", (torch.device("xpu", 1),)), ("mps", ())])
def test_intels_and_apples_devices_are_waited_for_and_keep_their_random_state(monkeypatch, kind, where):
    asked: list[Any] = []
    there = Counts(asked)
    monkeypatch.setattr(torch, kind, there)
    device = torch.device(kind, 1) if kind == "xpu" else torch.device(kind)
    seconds_of(lambda: None, device)
    assert asked == [where, where]
    before = torch.get_rng_state()
    with random_kept(device):
        there.state = 2
        torch.rand(1)
    assert there.state == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert asked[2:] == [where]
    assert allocator(device) is None, "it counts nothing here"


def test_memory_is_counted_by_intels_allocator_as_by_cudas():
    assert allocator(torch.device("xpu")) is torch.xpu
    assert allocator(torch.device("cuda")) is torch.cuda
    assert allocator(CPU) is None


def test_what_is_bound_to_cuda_says_so_elsewhere():
    lean = MemoryConfig(fit="manual", streamed=0.5, offload_activations=True)
    (said,) = without_overlap(torch.device("mps"), lean)
    assert said.startswith("on mps devices streamed and offload_activations (Train Memory) copies without")
    for device, memory in (("mps", MemoryConfig()), ("cuda", lean), ("cpu", lean)):
        assert without_overlap(torch.device(device), memory) == []
