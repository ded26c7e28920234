"""LoRA's own forward pass beside peft's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.adapters.inject import Adapter, injected
from in_graph_lora.trainer.config import AdapterConfig
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.compiling import compiled
from in_graph_lora.trainer.memory.out_of_place import out_of_place
from in_graph_lora.trainer.memory.quantised import differentiable
from in_graph_lora.trainer.memory.streaming import Packed, streamed
from workbench.bench.adapters import by_peft, counted

RANK = 4


class Turned(nn.Linear):
    """Its output is not contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.transpose(0, 1).contiguous().transpose(0, 1)


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(96, 160), (2, 60, 96)),
    "linear without bias": (lambda: nn.Linear(96, 160, bias=False), (2, 60, 96)),
    "linear on rows": (lambda: nn.Linear(96, 160), (60, 96)),
    "linear on one row": (lambda: nn.Linear(96, 160), (96,)),
    "linear, turned": (lambda: Turned(96, 160), (2, 60, 96)),
    "conv1d": (lambda: nn.Conv1d(16, 24, 3, padding=1), (2, 16, 30)),
    "conv2d": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(16, 24, (1, 3, 3)), (2, 16, 2, 6, 6)),
}
every_shape = pytest.mark.parametrize("name", SHAPES)


@contextmanager
def adapted(
    name: str, dtype: torch.dtype, peft: bool = False, alpha: float = 2.0 * RANK, seed: int = 1, **config: Any
) -> Iterator[tuple[Adapter, Any]]:
    """An adapter of which no weight is zero, and the layer that has it."""
    torch.manual_seed(0)
    net = nn.Module()
    # Weights that half precision has too, so that results of several dtypes can be compared.
    layer = SHAPES[name][0]().bfloat16().to(dtype).requires_grad_(False)
    net.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"to_q": layer})})])
    half = None if dtype == torch.float32 else dtype
    settings = AdapterConfig(rank=RANK, alpha=alpha, targets="regex:to_q", **config)
    with injected(net, settings, seed=0, compute_dtype=half) as adapter:
        g = torch.Generator().manual_seed(seed)
        for p in adapter.parameters():
            p.data = 0.1 * torch.randn(p.shape, generator=g)
        (adapted_layer,) = adapter.layers.values()
        if peft:
            by_peft(adapted_layer, half)
        yield adapter, adapted_layer


def passes(name: str, dtype: torch.dtype, seed: int = 2, **options: Any) -> dict[str, Tensor]:
    """The output, and the gradients of input, A and B."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPES[name][1], generator=g).bfloat16().to(dtype).requires_grad_()
    with adapted(name, dtype, seed=seed, **options) as (adapter, layer), adapter.dropout_draws(0, 0):
        y = layer(x * 1)
        slope = torch.randn(y.shape, generator=g).bfloat16().to(dtype)
        y.backward(slope)
        a, b = adapter.parameters()
    assert x.grad is not None
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.dtype == b.grad.dtype == torch.float32
    return {"y": y.detach(), "x": x.grad, "A": a.grad, "B": b.grad}


@every_shape
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_in_fp32_output_and_gradients_are_pefts(name: str, dropout: float) -> None:
    ours = passes(name, torch.float32, dropout=dropout)
    peft = passes(name, torch.float32, dropout=dropout, peft=True)
    for key in peft:
        assert torch.allclose(ours[key], peft[key], rtol=1e-5, atol=1e-5), key


@pytest.mark.parametrize("name", [s for s in SHAPES if "one row" not in s])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [RANK, 3.0])
def test_in_half_precision_nothing_is_further_from_fp32_than_with_peft(
    name: str, dtype: torch.dtype, alpha: float
) -> None:
    errors: dict[str, list[float]] = {}
    for seed in range(12):
        exact = passes(name, torch.float32, seed, alpha=alpha, peft=True)
        ours = passes(name, dtype, seed, alpha=alpha)
        peft = passes(name, dtype, seed, alpha=alpha, peft=True)
        for key, right in exact.items():
            error = errors.setdefault(key, [0.0, 0.0])
            for i, found in enumerate((ours, peft)):
                error[i] += float((found[key].float() - right).square().sum())
    for key, (of_ours, of_pefts) in errors.items():
        assert of_ours <= 1.05 * of_pefts, key


@pytest.mark.parametrize(("dtype", "most", "pefts"), [(torch.bfloat16, 10, 14), (torch.float32, 7, 10)])
def test_both_passes_take_fewer_operations_than_pefts(dtype: torch.dtype, most: int, pefts: int) -> None:
    assert added(dtype, alpha=RANK)[0] <= most
    assert added(dtype, alpha=RANK, peft=True)[0] >= pefts, "or our own forward pass is no longer needed"


def test_autograd_keeps_input_and_factors_and_nothing_of_the_outputs_size() -> None:
    kept = 120 * 96 + 120 * RANK + (96 + 160) * RANK
    assert added(torch.bfloat16)[1] == 2 * kept
    assert added(torch.float32, alpha=RANK)[1] == 4 * (120 * 96 + 120 * RANK)


def added(dtype: torch.dtype, **options: Any) -> tuple[int, int]:
    """Operations and kept bytes of a linear layer's adapter, on top of the layer's own."""
    x = torch.randn(2, 60, 96, dtype=dtype)
    with adapted("linear", dtype, **options) as (adapter, layer):

        def forward() -> Tensor:
            return layer(x.detach().requires_grad_() * 1)

        ours = counted(forward)
        with adapter.disabled():
            alone = counted(forward)
    return ours[0] - alone[0], ours[1] - alone[1]


@pytest.mark.parametrize("name", ["linear", "conv2d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_sends_no_identity_matrix_through_its_layers(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with adapted(name, dtype, kind="dora") as (_, layer):
        monkeypatch.delattr(torch, "eye")
        assert torch.isfinite(layer(torch.ones(SHAPES[name][1], dtype=dtype))).all()


@pytest.mark.parametrize("name", ["linear", "linear without bias", "conv2d"])
def test_what_a_network_writes_into_the_output_has_its_gradient(name: str) -> None:
    found = []
    for in_place in (True, False):
        x = torch.ones(SHAPES[name][1], requires_grad=True)
        with adapted(name, torch.float32) as (adapter, layer):
            y = layer(x)
            if in_place:
                y *= 3
                y[0].flatten()[:5] += y[1].flatten()[:5]
            else:
                y = 3 * y
                first = y[0].flatten()
                first = torch.cat([first[:5] + y[1].flatten()[:5], first[5:]]).view(y[0].shape)
                y = torch.stack([first, y[1]])
            y.square().sum().backward()
            found.append([x.grad, *(p.grad for p in adapter.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"to_q": nn.Linear(32, 32), "to_k": nn.Linear(32, 32, bias=False)})
        self.ff = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.attn["to_q"](x)) * self.attn["to_k"](x)
        return x + self.ff(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_of_an_input_that_layers_share_are_added(dtype: torch.dtype, dropout: float) -> None:
    def gradients(dtype: torch.dtype, peft: bool) -> Tensor:
        torch.manual_seed(0)
        net = nn.Module()
        net.blocks = nn.ModuleList(Block().bfloat16().to(dtype) for _ in range(2))
        net.requires_grad_(False)
        half = None if dtype == torch.float32 else dtype
        settings = AdapterConfig(rank=RANK, targets="all linear", dropout=dropout)
        with injected(net, settings, seed=0, compute_dtype=half) as adapter:
            g = torch.Generator().manual_seed(1)
            for p in adapter.parameters():
                p.data = 0.1 * torch.randn(p.shape, generator=g)
            for layer in adapter.layers.values() if peft else ():
                by_peft(layer, half)
            x = torch.randn(2, 60, 32, generator=g).to(dtype).requires_grad_()
            with adapter.dropout_draws(0, 0):
                y = net.blocks[1](net.blocks[0](x))
            y.float().square().mean().backward()
            assert x.grad is not None
            return torch.cat([p.grad.flatten() for p in (x, *adapter.parameters())]).float()

    exact = gradients(torch.float32, peft=True)
    ours, pefts = (float((gradients(dtype, peft) - exact).norm()) for peft in (False, True))
    assert ours <= 1.05 * pefts
    assert ours < 0.05 * float(exact.norm())


def test_what_a_network_has_written_into_the_input_before_is_seen() -> None:
    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            x.mul_(2)  # the result is dropped
            return layer(x)

    found = []
    with adapted("linear", torch.bfloat16) as (_, layer), out_of_place((), [writing := Writing()]):
        for f in (writing, lambda x: layer(2 * x)):
            x = torch.ones(SHAPES["linear"][1], dtype=torch.bfloat16, requires_grad=True)
            f(x).sum().backward()
            found.append(x.grad)
    assert torch.equal(*found)


WARNING = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"


def compiled_graphs(depth: int, kind: Any, dtype: torch.dtype, quantised: bool = False) -> int:
    """How many graphs two training passes and one without gradients through blocks of one class compile."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    net = nn.Module()
    net.blocks = nn.ModuleList(Block() for _ in range(depth))
    net.to(dtype).requires_grad_(False)
    config = AdapterConfig(kind=kind, rank=RANK, targets="all linear")
    half = None if dtype == torch.float32 else dtype
    with ExitStack() as stack:
        away = []
        if quantised:
            layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
            stack.enter_context(differentiable({m: partial(own_weight, m) for m in layers}))
            away = [Packed(block) for block in net.blocks]
        stack.enter_context(injected(net, config, seed=0, compute_dtype=half))
        stack.enter_context(compiled(net.blocks, "aot_eager"))
        stack.enter_context(streamed(away, torch.device("cpu")))
        stack.enter_context(checkpointed(net.blocks, 1))
        for train in (True, False, True):
            with nullcontext() if train else torch.no_grad():
                x = torch.randn(2, 6, 32, dtype=dtype)
                for block in net.blocks:
                    x = block(x)
            if train:
                x.float().square().mean().backward()
    counters = torch._dynamo.utils.counters
    if kind not in ("loha", "lokr"):  # in which peft branches on a random number
        assert quantised or not counters["graph_break"]
        assert counters["frames"]["ok"] == counters["frames"]["total"], "some layers were left as they are"
    return counters["stats"]["unique_graphs"]


def own_weight(layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> Tensor:
    return layer.weight.to(device, dtype)


@pytest.mark.filterwarnings(WARNING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_share_what_was_compiled_whatever_their_number(dtype: torch.dtype) -> None:
    assert 0 < compiled_graphs(2, "lora", dtype) == compiled_graphs(10, "lora", dtype)


@pytest.mark.filterwarnings(WARNING)
@pytest.mark.parametrize("kind", ["locon", "dora", "loha", "oft", "full"])  # the others are alike
def test_with_each_kind_a_further_block_compiles_nothing(kind: Any) -> None:
    assert 0 < compiled_graphs(2, kind, torch.bfloat16) == compiled_graphs(3, kind, torch.bfloat16)


@pytest.mark.filterwarnings(WARNING)
def test_streamed_blocks_of_quantised_layers_share_it_too() -> None:
    graphs = [compiled_graphs(depth, "lora", torch.bfloat16, quantised=True) for depth in (2, 3)]
    assert 0 < graphs[0] == graphs[1]
