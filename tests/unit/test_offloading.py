"""Inputs of checkpointed blocks in host memory. Copies here are late: made when they are waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.memory import offloading
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.offloading import Copies, offloaded

BLOCKS, ROWS, WIDTH = 5, 512, 512
BYTES = 4 * ROWS * WIDTH
"""Of what goes from block to block: SMALL, just enough to leave."""
CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.weight = nn.Parameter(torch.randn(WIDTH) / 10)
        self.log: list[Any] = []

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any], shift: Tensor) -> Tensor:
        self.log.append(("run", self.number))
        y = torch.sin(x * self.weight) * torch.tanh(context) + options["pair"][0] * shift
        return x + y * options["wide"] + y.sum(1, keepdim=True).tanh()


class Net(nn.Module):
    """Blocks are given one context, a slice, and what is expanded to its size."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.context = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.shift = nn.Parameter(torch.randn(WIDTH))
        self.blocks = nn.ModuleList(Block(i) for i in range(BLOCKS))
        for block in self.blocks:
            block.log = log

    def forward(self, x: Tensor) -> Tensor:
        context = self.context * 2
        wide = torch.cat([x, x], 1)[:, WIDTH // 2 :][:, :WIDTH]
        pair = (torch.randn(ROWS, 1, generator=torch.Generator().manual_seed(2)).expand(ROWS, WIDTH), 3)
        for block in self.blocks:
            x = block(x, context, {"pair": pair, "wide": wide}, shift=self.shift)
        return x


class Late(Copies):
    """As slow as a copy may be: made when it is waited for; until then its target is no number."""

    def __init__(self, device: torch.device) -> None:
        self.log: list[Any] = []
        self.hosts: list[StorageWeakRef] = []
        self.brought: list[StorageWeakRef] = []
        self.most = 0
        """Brought tensors at one time."""

    def _later(self, target: Tensor, source: Tensor) -> tuple[Tensor, Callable[[], Any]]:
        sources = [source]
        return target.fill_(torch.nan), lambda: target.data.copy_(sources.pop()) if sources else None

    def leave(self, tensor: Tensor, kept: int) -> tuple[Tensor, Any]:
        self.log.append("leave")
        host = torch.empty_like(tensor)
        self.hosts.append(StorageWeakRef(host.untyped_storage()))
        return self._later(host, tensor)

    def bring(self, host: Tensor, stride: tuple[int, ...], device: torch.device) -> tuple[Tensor, Any]:
        self.log.append("bring")
        there, event = self._later(*super().bring(host, stride, device)[:1], host)
        self.brought.append(StorageWeakRef(there.untyped_storage()))
        self.most = max(self.most, sum(not r.expired() for r in self.brought))
        return there, event

    def wait(self, event: Any) -> None:
        event()


class Storages(TorchDispatchMode):
    """Everything that is made within, without keeping it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def alive(self, but: list[StorageWeakRef]) -> int:
        """Of what is large."""
        others = {r.cdata for r in but}
        return sum(n >= BYTES for key, (r, n) in self.made.items() if not r.expired() and key not in others)


@contextmanager
def on_the_host(net: Net, make: Any = Late) -> Iterator[Any]:
    with (
        offloaded(CPU, make=make) as offload,
        checkpointed(list(net.blocks), 1, offload=offload),
    ):
        assert offload is not None
        yield offload.copies


def gradients(net: Net, passes: int = 1) -> dict[str, Tensor]:
    net.zero_grad()
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    sum((net(x + i).square().mean() for i in range(passes)), torch.zeros(())).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("make", [Late, Copies])
def test_gradients_are_bit_equal(make, passes):
    net = Net([])
    with checkpointed(list(net.blocks), 1):
        right = gradients(net, passes)
    with on_the_host(net, make):
        for _ in range(2):
            found = gradients(net, passes)
            assert found.keys() == right.keys()
            assert all(torch.equal(found[name], right[name]) for name in right)


def test_between_the_passes_the_device_holds_the_inputs_of_the_newest_block_only():
    def held(net: Net) -> tuple[int, Any]:
        x = torch.randn(ROWS, WIDTH)
        with Storages() as storages:
            y = net(x).square().mean()
        return storages, y

    net = Net([])
    with checkpointed(list(net.blocks), 1):
        gradients(net)  # the first pass checks the blocks
        storages, y = held(net)
        without = storages.alive([])
        del storages, y
    with on_the_host(net) as copies:
        gradients(net)
        storages, y = held(net)
        inside = storages.alive(copies.hosts)
        y.backward()
        assert sum(not r.expired() for r in copies.hosts) == len(
            ["the last block's input", "context", "wide"]
        )
    assert all(r.expired() for r in copies.hosts)
    # No operation has made the first block's input; the output is kept for its square.
    assert without == (BLOCKS - 1) + len(["output", "context", "wide"])
    assert inside == len(["the newest block's input", "output"])
    assert all(r.expired() for r in copies.brought)


def test_what_blocks_share_leaves_and_comes_once_and_small_tensors_stay():
    net = Net(log := [])
    with on_the_host(net) as copies:
        gradients(net)
        copies.log.clear()
        gradients(net)
        shared = len(["context", "wide"])
        assert copies.log.count("leave") == BLOCKS + shared
        assert copies.log.count("bring") == BLOCKS - 1 + shared, "the newest block's input is still there"
        assert copies.most == 2 + shared
    assert log


def test_inputs_are_sent_for_one_block_ahead():
    net = Net([])
    with on_the_host(net) as copies:
        gradients(net)
        for block in net.blocks:
            block.log = copies.log
        copies.log.clear()
        gradients(net)
    back = copies.log[copies.log.index(("run", BLOCKS - 1)) + 1 :]
    shared = ["bring", "bring"]
    expected: list[Any] = [*shared, "bring", ("run", 4), "bring", ("run", 3), "bring", ("run", 2), "bring"]
    assert back == [*expected, ("run", 1), ("run", 0)]


class Scale(nn.Module):
    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        return torch.sin(x * by)


def test_what_is_written_into_later_leaves_again_and_what_is_still_being_copied_is_refused():
    first, second, third = blocks = nn.ModuleList([Scale(), Scale(), Scale()])
    x = torch.randn(ROWS, WIDTH, requires_grad=True)

    def gradient(at_once: bool) -> Tensor:
        by, other = torch.ones(ROWS, WIDTH), torch.ones(ROWS, WIDTH)
        y = first(x, by)
        if at_once:
            by.add_(1)
        y = second(y, other)
        by.add_(1)
        return torch.autograd.grad(third(y, by).sum(), x)[0]

    z = x.detach()
    expected = z.cos() * z.sin().cos() * (z.sin().sin() * 2).cos() * 2
    with offloaded(CPU, make=Late) as offload, checkpointed(list(blocks), 1, offload=offload):
        assert torch.allclose(gradient(at_once=False), expected, atol=1e-6)
        with pytest.raises(ModelError, match="overwrites in place"):
            gradient(at_once=True)
    with checkpointed(list(blocks), 1), pytest.raises(RuntimeError, match="modified by an inplace"):
        gradient(at_once=False)


def test_after_an_error_nothing_is_left_and_the_next_pass_is_right(monkeypatch):
    net = Net([])
    with checkpointed(list(net.blocks), 1):
        right = gradients(net)
    bring = Late.bring
    with on_the_host(net) as copies:
        gradients(net)

        def fails(self, *args):
            if len(self.brought) == 9:
                raise torch.OutOfMemoryError("no room for what comes back")
            return bring(self, *args)

        monkeypatch.setattr(Late, "bring", fails)
        with pytest.raises(torch.OutOfMemoryError, match="what comes back"):
            gradients(net)
        monkeypatch.undo()
        found = gradients(net)
    assert all(torch.equal(found[name], right[name]) for name in right)
    assert all(r.expired() for r in [*copies.hosts, *copies.brought])
    assert not any("forward" in vars(block) for block in net.blocks)


def test_without_gradients_nothing_leaves():
    net = Net([])
    with on_the_host(net) as copies, torch.no_grad():
        net(torch.randn(ROWS, WIDTH))
    assert copies.log == []


def test_not_wanted_is_nothing():
    with offloaded(CPU, wanted=False) as offload:
        assert offload is None


@pytest.mark.parametrize(
    ("tensor", "apart"),
    [
        (torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last), True),
        (torch.empty(4, 9)[:, 2:5], True),
        (torch.empty(4, 9).T, True),
        (torch.empty(9).unfold(0, 3, 1), False),
    ],
)
def test_what_lies_over_itself_stays(tensor, apart):
    assert offloading._apart(tensor) is apart


def test_what_is_sent_for_in_vain_is_waited_for_before_its_memory_is_free():
    """The device could be given that memory for something else while the copy is under way."""

    class Strict(Late):
        pending = 0

        def bring(self, *args: Any) -> tuple[Tensor, Any]:
            there, event = super().bring(*args)
            waited: list[bool] = []
            self.pending += 1

            def once() -> None:
                self.pending -= not waited
                waited.append(True)
                event()

            return there, once

    first, unused, last = blocks = nn.ModuleList([Scale(), Scale(), Scale()])
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with offloaded(CPU, make=Strict) as offload, checkpointed(list(blocks), 1, offload=offload):
        for _ in range(2):
            y = first(x, torch.ones(ROWS, WIDTH))
            kept = unused(y, torch.ones(ROWS, WIDTH))
            torch.autograd.grad(last(y, torch.ones(ROWS, WIDTH)).sum(), x)
            assert kept.requires_grad
            assert offload is not None
            assert offload.copies.pending == 0
        assert offload.copies.log.count("bring") == 2 * 4, "those of the unused one too"


@pytest.mark.parametrize(
    ("given", "pinned", "told"), [(9, [True, True, False, False], ""), (1, [True, False], "1 MB")]
)
def test_pinned_memory_has_a_limit_and_a_machine_that_gives_less_is_told_of(
    monkeypatch, caplog, given, pinned, told
):
    empty_like, found = torch.empty_like, []

    def machine(tensor: Tensor, *, device: str, pin_memory: bool = False) -> Tensor:
        if pin_memory and sum(found) == given:
            raise RuntimeError("CUDA error: out of memory")
        found.append(pin_memory)
        return empty_like(tensor, device=device)

    monkeypatch.setattr(torch, "empty_like", machine)
    copies = offloading.CudaCopies.__new__(offloading.CudaCopies)
    copies.pinned_bytes = 2 * 2**20
    for i in range(len(pinned)):
        copies._host(torch.empty(2**18), i * 2**20)
    assert found == pinned
    assert told in caplog.text
    assert bool(caplog.text) is bool(told)


def test_strides_are_those_that_it_left_with():
    wide = torch.randn(3, 1000, 1, 400)
    for tensor in (wide.expand(3, 1000, 7, 400), wide[:, ::2], wide.transpose(1, 3), wide[:, :, 0, 50:]):
        offload = offloading.Offload(CPU, Copies(CPU))
        packed = offload._leave(tensor, offloading.Inputs())
        offload.let_go()
        assert isinstance(packed, tuple)
        back = offload._come(packed)
        assert torch.equal(back, tensor)
        assert back.stride() == tensor.stride()
        assert back.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
