"""Gradient checkpointing and compilation, block by block: same gradients, less kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.host.model import HostDenoiser
from in_graph_lora.trainer.memory import offloading
from in_graph_lora.trainer.memory.blocks import blocks
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.compiling import compiled
from in_graph_lora.trainer.memory.offloading import Copies, offloaded

from ..tiny_models import TINY
from .family_case import Case, adapted, one_of_each, relative

pytestmark = pytest.mark.slow

every_family = pytest.mark.parametrize("name", TINY)


@lru_cache
def case(name: str) -> Case:
    return Case(name)


@pytest.fixture(autouse=True, scope="module")
def _models_go() -> Iterator[None]:
    yield
    case.cache_clear()


def bytes_kept(c: Case, denoiser: HostDenoiser) -> int:
    """Bytes of the activations that a forward pass keeps for the backward pass."""
    frozen = {p.untyped_storage().data_ptr() for p in denoiser.net.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = c.loss(denoiser)
    assert loss.requires_grad
    return sum(kept.values())


@every_family
def test_gradients_are_the_same_with_every_block_checkpointed_every_other_and_none(name: str) -> None:
    c = case(name)
    with adapted(c, "all linear") as (denoiser, adapter):
        right = c.gradients(denoiser, adapter, torch.autograd.graph.allow_mutation_on_saved_tensors())
        for every in (0, 1, 2):
            with checkpointed(denoiser.blocks, every):
                assert relative(c.gradients(denoiser, adapter), right) < 1e-5


@every_family
def test_the_more_blocks_are_checkpointed_the_less_is_kept(name: str) -> None:
    c = case(name)
    with adapted(c) as (denoiser, _):
        kept = []
        for every in (0, 2, 1):
            with checkpointed(denoiser.blocks, every):
                c.loss(denoiser)  # the first pass checks the blocks
                kept.append(bytes_kept(c, denoiser))
    assert kept[0] > kept[1] > kept[2]
    assert kept[2] < 0.75 * kept[0]


@every_family
def test_gradients_are_bit_equal_with_what_is_kept_on_the_host(name: str, monkeypatch) -> None:
    monkeypatch.setattr(offloading, "SMALL", 0)
    c = case(name)
    with adapted(c, "all linear") as (denoiser, adapter):
        with checkpointed(denoiser.blocks, 1):
            right = c.gradients(denoiser, adapter)
        with (
            offloaded(denoiser.device, make=Counted) as offload,
            checkpointed(denoiser.blocks, 1, offload=offload),
        ):
            for _ in range(2):
                assert torch.equal(c.gradients(denoiser, adapter), right)
            assert offload is not None
            assert min(offload.copies.left, offload.copies.brought) > 0


class Counted(Copies):
    left = brought = 0

    def leave(self, *args: Any) -> Any:
        self.left += 1
        return super().leave(*args)

    def bring(self, *args: Any) -> Any:
        self.brought += 1
        return super().bring(*args)


class Block(nn.Module):
    """Reads and writes an option, and scales by what it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.runs = 0

    def forward(self, x: Tensor, options: dict[str, Any]) -> Tensor:
        self.runs += 1
        options["index"] = options["index"] + 1
        return self.linear(x).tanh() * options["index"]


def run(modules: list[Block], x: Tensor) -> tuple[Tensor, Tensor]:
    options: dict[str, Any] = {"index": 0}
    y = x
    for module in modules:
        y = module(y, options=options)
    options["index"] = 1000
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return y.detach(), gradient


def test_a_recomputation_sees_the_options_as_they_were() -> None:
    modules = [Block(), Block()]
    x = torch.randn(3, 4, requires_grad=True)
    plain = run(modules, x)
    with checkpointed(modules, 1):
        again = run(modules, x)
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[1], again[1])


def test_blocks_run_as_often_as_they_must() -> None:
    modules = [Block(), Block(), Block(), Block()]
    x = torch.randn(3, 4, requires_grad=True)
    with checkpointed(modules, 2):
        run(modules, x)
        for module in modules:
            module.runs = 0
        run(modules, x)
    assert [m.runs for m in modules] == [2, 1, 2, 1]


def test_nothing_is_recomputed_or_wrapped_afterwards_or_without_gradients() -> None:
    modules = [Block()]
    with checkpointed(modules, 1), torch.no_grad():
        modules[0](torch.randn(3, 4), {"index": 0})
        assert modules[0].runs == 1
    assert "forward" not in vars(modules[0])


@pytest.mark.parametrize("kind", ["operator", "method", "input"])
def test_a_block_that_overwrites_what_gradients_need_is_refused(kind: str) -> None:
    class Overwriting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if kind == "input":
                x += 1
                return x.tanh()
            y = x * 2
            z = y.square()  # keeps y
            if kind == "operator":
                y += z
            else:
                y.mul_(z)
            return y + z

    with checkpointed([block := Overwriting()], 1), pytest.raises(ModelError, match="overwrites values"):
        block(torch.randn(3, 4, requires_grad=True) * 1)


def test_dropout_draws_the_same_in_the_recomputation_and_nothing_extra() -> None:
    block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)).train()
    x = torch.randn(4, 8, requires_grad=True)

    def gradient() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        (g,) = torch.autograd.grad(block(x).square().sum(), x)
        return g, torch.rand(1)

    plain = gradient()
    with checkpointed([block], 1):
        again = gradient()
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[1], again[1])


def test_blocks_of_an_unknown_network_are_its_long_lists() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10_000, 8)
            self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3))
            self.mixed = nn.ModuleList([nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8))])

    net = Net()
    assert blocks(net) == list(net.layers)
    assert blocks(net, ("LayerNorm",)) == list(net.norms)


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("unheard_of", 0),
        ("flux1", 1),
        ("flux1", 0),
        ("ltxv", 1),
        ("sd15", 1),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_give_the_same_gradients(name: str, every: int) -> None:
    c = case(name)
    torch.compiler.reset()
    with adapted(c) as (denoiser, adapter):
        right = c.gradients(denoiser, adapter, torch.autograd.graph.allow_mutation_on_saved_tensors())
        some = one_of_each(denoiser.blocks)
        with compiled(some, backend="aot_eager"), checkpointed(denoiser.blocks, every):
            assert relative(c.gradients(denoiser, adapter), right) < 1e-5
    assert not any("forward" in vars(m) for m in denoiser.net.modules())


def test_checkpointing_is_left_as_it_was_entered_when_a_block_fails() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    with contextlib.suppress(ValueError), checkpointed([block := Failing()], 1):
        block(torch.randn(2, requires_grad=True))
    assert "forward" not in vars(block)


class FailsLater(nn.Module):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > 1:  # the first call is the check whether it overwrites values
            raise torch.OutOfMemoryError
        return x.square()


def test_after_an_error_in_a_block_other_gradients_are_computed_as_ever() -> None:
    """torch takes its hooks away when the traceback goes, and something may keep that."""
    block = FailsLater()
    with checkpointed([block], 1), pytest.raises(torch.OutOfMemoryError) as kept:
        block(torch.ones(2, requires_grad=True))
    x = torch.ones(2, requires_grad=True)
    x.square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 2 * torch.ones(2))
    assert kept.value
