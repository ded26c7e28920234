"""The ring on a GPU: what is computed late still finds its own block, and little of it is on the card."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.memory import streaming
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.streaming import Packed, Ring, streamed

from ..host.family_case import Case, adapted
from .test_gradients import gradients

pytestmark = pytest.mark.gpu

WIDTH, BLOCKS = 1024, 6
SLEEP = 20_000_000
"""Cycles, some 10 ms: a copy of a block is long done by then."""


def late(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda._sleep(SLEEP)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.requires_grad_(False)
        self.slow = False

    def forward(self, x: Tensor) -> Tensor:
        if self.slow:  # the block after this one is copied while this one waits
            late(x)
        return x + self.down(torch.tanh(self.up(x)))


def poisoned(base: type) -> type:
    class Poisoned(base):  # type: ignore[misc]
        """What was in a buffer is no number when a copy begins."""

        def copy(self, leaves: Any, slot: Tensor, since: Any) -> Any:
            stream = getattr(self, "stream", None)
            with torch.cuda.stream(stream) if stream is not None else ExitStack():
                if stream is not None:
                    stream.wait_event(since)
                slot.fill_(255)
            return super().copy(leaves, slot, since)

    return Poisoned


@pytest.fixture
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_Copies", "_CudaCopies"):
        monkeypatch.setattr(streaming, name, poisoned(getattr(streaming, name)))


def passes(blocks: nn.ModuleList, x: Tensor, away: list[Packed], device: torch.device) -> list[Tensor]:
    out = []
    with ExitStack() as stack:
        stack.enter_context(streamed(away, device))
        stack.enter_context(checkpointed(list(blocks), 1))
        for _ in range(3):
            leaf = x.clone().requires_grad_()
            y = leaf
            for block in blocks:
                y = block(y)
            y.square().mean().backward()
            assert leaf.grad is not None
            out.append(leaf.grad)
    return out


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("pinned", [False, True], ids=["through the staging buffers", "pinned"])
@pytest.mark.parametrize("slow", ["all", "every other", "none"])
def test_a_block_that_is_computed_late_finds_its_own_weights(slow: str, pinned: bool, device) -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
    x = torch.randn(4, WIDTH, device=device)
    right = passes(blocks.to(device), x, [], device)
    blocks.cpu()
    if pinned and device.type == "cuda":
        for p in blocks.parameters():
            p.data = p.data.pin_memory()
    for i, block in enumerate(blocks):
        block.slow = slow == "all" or (slow == "every other" and i % 2 == 0)
    found = passes(blocks, x, [Packed(block) for block in blocks], device)
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
    assert all(p.device.type == "cpu" for p in blocks.parameters())


@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("name", ["flux1", "sdxl", "qwen_image"])
def test_gradients_of_real_blocks_read_no_buffer_that_was_filled_anew(name: str, device) -> None:
    c = Case(name, torch.bfloat16, device)
    found = gradients(c, 1.0)
    assert torch.isfinite(found).all()
    assert torch.equal(found, gradients(c))


def test_only_the_ring_is_on_the_card(device: torch.device, record_property: Any) -> None:
    blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
    away = [Packed(block) for block in blocks]
    total = sum(packed.nbytes for packed in away)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    passes(blocks, torch.randn(4, WIDTH, device=device), away, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
        used = torch.cuda.max_memory_allocated() - before
        record_property("peak", used)
        assert used < streaming.SLOTS * away[0].nbytes + 2**24 < total


def test_pinned_memory_is_bounded_and_given_back(device: torch.device, record_property: Any) -> None:
    block = Block()
    ring = Ring([Packed(block)], device)
    record_property("pinned", ring.pinned_bytes)
    assert ring.pinned_bytes <= streaming.PINNED_BYTES
    assert (ring.pinned_bytes > 0) == (device.type == "cuda")
    ring.close()
    assert psutil.virtual_memory().available > 0


def test_the_outside_of_the_blocks_and_the_adapters_stay_on_the_card(device: torch.device) -> None:
    with adapted(Case("flux1", device=device), "all linear", streamed=1.0) as (denoiser, adapter):
        away = {id(p) for packed in denoiser.away for _, _, p in packed.places}
        for name, p in denoiser.net.named_parameters():
            assert p.device.type == ("cpu" if id(p) in away else device.type), name
        assert all(p.device.type == device.type for p in adapter.parameters())
