"""What is live on a CPU, by its storages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
