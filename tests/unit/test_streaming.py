"""Streaming with the CPU as the device: what left a buffer is poison, so that a stale use would be seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.memory import streaming
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.streaming import Packed, Ring, spread, streamed

BLOCKS, WIDTH = 6, 16
CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)
        self.conv = nn.Conv2d(1, 1, 3, padding=1).to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(4, WIDTH))
        self.b = nn.Parameter(torch.randn(40, 4))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        y = self.norm(x) + shift
        y = self.down(torch.tanh(self.up(y) + y @ self.a.T @ self.b.T))
        return x + y + self.conv(y[:, None, None])[:, 0, 0]


class Net(nn.Module):
    """What conditions all blocks is trained too, so that gradients of one block wait for those of others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shift = nn.Parameter(torch.randn(WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, self.shift)
        return x


class Poisoned(streaming._Copies):
    """Keeps a record, makes what was in a buffer NaN before it is filled, and fails on demand."""

    def __init__(self, fail_at: int = -1) -> None:
        self.order: list[int] = []
        self.fail_at = fail_at

    def copy(self, leaves: Any, slot: Tensor, since: Any) -> Any:
        slot.fill_(255)
        self.order.append(id(leaves))
        if len(self.order) - 1 == self.fail_at:
            raise OSError("the file is gone")
        super().copy(leaves, slot, since)


class Watched(Ring):
    def __init__(self, *args: Any, fail_at: int = -1) -> None:
        super().__init__(*args)
        self._copies = self.record = Poisoned(fail_at)

    @property
    def order(self) -> list[int]:
        """Of the fetches, those under way included."""
        if self.slots:  # not closed yet
            self._worker.submit(lambda: None).result()
        numbers = {id(block.leaves): i for i, block in enumerate(self.blocks)}
        return [numbers[key] for key in self.record.order]


@contextmanager
def on_the_way(net: Net, share: float, **options: Any) -> Iterator[Watched]:
    away = [Packed(net.blocks[i]) for i in spread(BLOCKS, share)]
    with ExitStack() as stack:
        ring = stack.enter_context(streamed(away, CPU, lambda *args: Watched(*args, **options)))
        stack.enter_context(checkpointed(list(net.blocks), 1))
        assert isinstance(ring, Watched)
        yield ring


def gradients(net: Net, passes: int = 1) -> dict[str, Tensor]:
    net.zero_grad()
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    sum((net(x + i).square().mean() for i in range(passes)), torch.zeros(())).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def objects(net: Net) -> list[tuple[int, bytes]]:
    return [(id(p), p.detach().numpy().tobytes()) for p in net.parameters()]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_gradients_are_those_of_a_resident_run_bit_for_bit(share, passes):
    net = Net()
    with checkpointed(list(net.blocks), 1):
        resident = gradients(net, passes)
    before = objects(net)
    with on_the_way(net, share):
        for _ in range(3):
            away = gradients(net, passes)
            assert away.keys() == resident.keys()
            assert all(torch.equal(away[name], resident[name]) for name in resident)
    assert objects(net) == before


def test_blocks_are_fetched_in_order_and_on_the_way_back_in_reverse():
    net = Net()
    with on_the_way(net, 1.0) as ring:
        gradients(net)
        assert ring.order == [0, 1, 2, 3, 4, 5, 3, 2, 1, 0]
        assert ring.moved == 10 * ring.nbytes
        gradients(net)
        assert ring.order[10:] == [2, 3, 4, 5, 3, 2, 1, 0], "the first two were there"


def test_a_pass_without_gradients_sends_for_the_first_block_at_its_end():
    net = Net()
    with on_the_way(net, 1.0) as ring, torch.no_grad():
        net(torch.zeros(1, WIDTH))
        net(torch.zeros(1, WIDTH))
        assert ring.order == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0]


def test_only_two_blocks_are_on_the_device():
    net = Net()
    with on_the_way(net, 1.0) as ring:
        block = sum(-(-p.nbytes // 256) * 256 for p in net.blocks[0].parameters() if not p.requires_grad)
        assert ring.nbytes == block
        assert [slot.numel() for slot in ring.slots] == [block, block]
        assert ring.pinned_bytes == 0


@pytest.mark.parametrize("fail_at", range(10))
def test_an_error_in_any_fetch_is_told_and_leaves_the_blocks_as_they_were(fail_at):
    net = Net()
    before = objects(net)
    with on_the_way(net, 1.0, fail_at=fail_at) as ring, pytest.raises(OSError, match="the file is gone"):
        gradients(net, passes=2)
    assert objects(net) == before
    assert len(ring.order) > fail_at
    assert not any("forward" in vars(block) for block in net.blocks)


def test_the_next_fetch_is_tried_again_after_an_error():
    net = Net()
    resident = gradients(net)
    with on_the_way(net, 1.0, fail_at=4):
        with pytest.raises(OSError, match="the file is gone"):
            gradients(net)
        assert all(torch.allclose(g, resident[name]) for name, g in gradients(net).items())


def test_without_checkpointing_autograd_refuses_what_has_left():
    net = Net()
    with (
        streamed([Packed(block) for block in net.blocks], CPU, Watched),
        pytest.raises(RuntimeError, match="modified by an inplace operation"),
    ):
        gradients(net)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(6, 0, []), (6, 1, [0, 1, 2, 3, 4, 5]), (6, 0.5, [1, 3, 5]), (6, 0.01, [5]), (57, 0.3, 18), (0, 1, [])],
)
def test_a_share_of_the_blocks_is_spread_evenly(count, share, expected):
    found = spread(count, share)
    assert (found if isinstance(expected, list) else len(found)) == expected
    gaps = {b - a for a, b in zip(found, found[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_half_precision_and_one_block_alone():
    net = Net().to(torch.bfloat16)
    x = torch.randn(3, WIDTH, dtype=torch.bfloat16)
    with torch.no_grad():
        resident = net(x)
        with streamed([Packed(net.blocks[2])], CPU, Watched) as ring:
            assert torch.equal(net(x), resident)
            assert torch.equal(net(x), resident)
    assert isinstance(ring, Watched)
    assert ring.order == [0]


@pytest.mark.parametrize(
    ("most", "size", "told"), [(2**30, 2**22, ""), (2**20, 2**20, "got 2 MB"), (0, 0, "got none")]
)
def test_a_machine_that_is_short_of_pinned_memory_gives_less_and_it_is_told(
    monkeypatch, caplog, most, size, told
):
    empty = torch.empty

    def machine(count: int, *, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        if count > most:
            raise RuntimeError("CUDA error: out of memory")
        return empty(count, dtype=dtype)

    monkeypatch.setattr(torch, "empty", machine)
    assert [buffer.numel() for buffer in streaming._pinned(2**22)] == ([size, size] if size else [])
    assert told in caplog.text
    assert bool(caplog.text) is bool(told)


def test_a_block_has_its_own_parameters_again_once_its_buffer_is_filled_with_another():
    net = Net()
    own = [{id(p) for p in block.parameters()} for block in net.blocks]
    with on_the_way(net, 1.0) as ring:
        gradients(net)
        away = [i for i, block in enumerate(net.blocks) if not {id(p) for p in block.parameters()} <= own[i]]
        assert set(away) <= {i for i in ring._holds if i is not None}
        assert away, "the last ones recomputed"
