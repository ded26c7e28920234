"""What checkpointed blocks keep, in host memory: copied on a stream of its own, to pinned memory and back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.memory import offloading
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.offloading import offloaded
from in_graph_lora.trainer.memory.streaming import streamed

from ..host.family_case import Case, adapted

pytestmark = pytest.mark.gpu

BLOCKS, ROWS, WIDTH = 12, 8192, 1024
BYTES = 4 * ROWS * WIDTH


def gradients(c: Case, offload: bool, share: float) -> Tensor:
    with adapted(c, "all linear", streamed=share) as (denoiser, adapter), ExitStack() as stack:
        kept = stack.enter_context(offloaded(denoiser.device, offload))
        stack.enter_context(streamed(denoiser.away, denoiser.device))
        stack.enter_context(checkpointed(denoiser.blocks, 1, offload=kept))
        c.gradients(denoiser, adapter)
        return c.gradients(denoiser, adapter).float().cpu()


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux1", "qwen_image", "z_image"])
def test_gradients_are_bit_equal(name: str, share: float, device: torch.device, monkeypatch: Any) -> None:
    monkeypatch.setattr(offloading, "SMALL", 0)
    c = Case(name, device=device)
    assert torch.equal(gradients(c, True, share), gradients(c, False, share))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x + context)))


def net_on(device: torch.device) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Block() for _ in range(BLOCKS)).to(device)


def one_pass(net: nn.ModuleList, device: torch.device) -> tuple[int, list[Tensor]]:
    """Bytes on the device between the passes, and the gradients."""
    for p in net.parameters():
        p.grad = None
    g = torch.Generator().manual_seed(1)
    rows = ROWS if device.type == "cuda" else 8
    x, context = (torch.randn(rows, WIDTH, generator=g).to(device) for _ in range(2))
    for block in net:
        x = block(x, context * 1 if block is net[0] else context)
    loss = x.square().mean()
    del x
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    loss.backward()
    return held, [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("pinned", [True, False])
def test_between_the_passes_they_are_not_on_the_gpu(
    device: torch.device, pinned: bool, record_property: Any, monkeypatch: Any
) -> None:
    if device.type != "cuda":
        monkeypatch.setattr(offloading, "SMALL", 0)
    net = net_on(device)
    with checkpointed(list(net), 1):
        one_pass(net, device)
        held, right = one_pass(net, device)
    with offloaded(device) as offload, checkpointed(list(net), 1, offload=offload):
        assert offload is not None
        if not pinned and device.type == "cuda":
            offload.copies.pinned_bytes = 0
        for _ in range(3):
            lean, found = one_pass(net, device)
            assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
    record_property("held", {"on the device": held, "with offload_activations": lean})
    if device.type == "cuda":
        assert held - lean > (BLOCKS - 3) * BYTES
