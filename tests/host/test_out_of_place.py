"""In-place writes made out-of-place: same values, right gradients, everything as it was afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.memory.out_of_place import OutOfPlace, Rebound, out_of_place

oracle = torch.autograd.graph.allow_mutation_on_saved_tensors


def random_program(seed: int, x: Tensor, w: Tensor) -> list[Tensor]:
    """Operations, views of views and writes of every kind on a handful of tensors; all of them in the end."""
    rng = random.Random(seed)
    tensors = [x, x * 1.0]

    def pick() -> Tensor:
        return rng.choice(tensors)

    def write_rows(a: Tensor) -> None:
        a[0] += 0.1 * w[0, 0]

    def write_column(a: Tensor) -> None:
        a[..., 0] = 0.5 * a[..., 1]

    def assign(a: Tensor) -> None:
        a += torch.sin(pick().sum() * 0.1) * 0.3

    def copy(a: Tensor) -> None:
        b = pick()
        if b.shape == a.shape:
            a.copy_(b * 0.7)

    steps: list[Callable[[Tensor], Any]] = [
        assign,
        write_rows,
        write_column,
        copy,
        lambda a: a.mul_(0.9),
        lambda a: a.addcmul_(a.sin(), a.cos(), value=0.2),
        lambda a: nn.functional.silu(a, inplace=True),
        lambda a: tensors.append(a[..., :2]),
        lambda a: tensors.append(a.transpose(0, 1)),
        lambda a: tensors.append(a.reshape(-1).view(a.shape)),
        lambda a: tensors.append(nn.functional.layer_norm(a, a.shape[-1:])),
        lambda a: tensors.append(a.exp().clamp(max=3)),
    ]
    for _ in range(rng.randint(5, 25)):
        rng.choice(steps)(pick())
    return tensors


def value(tensors: list[Tensor]) -> Tensor:
    weights = [torch.linspace(-1, 1, t.numel()).view(t.shape) for t in tensors]
    return torch.stack([(t * w).tanh().sum() for t, w in zip(tensors, weights, strict=True)]).sum()


@pytest.mark.parametrize("seed", range(60))
def test_a_program_full_of_writes_has_the_value_and_gradient_that_it_has_in_place(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 4, generator=g, dtype=torch.float64)
    with oracle():
        expected = value(random_program(seed, b * w, w))
        (right,) = torch.autograd.grad(expected, w)
    with OutOfPlace():
        got = value(random_program(seed, b * w, w))
    (gradient,) = torch.autograd.grad(got, w)
    assert torch.equal(got, expected)
    assert torch.allclose(gradient, right, rtol=1e-9, atol=1e-12)


class Writing(nn.Module):
    """The residual twice, as ComfyUI's blocks write it."""

    def __init__(self, method: bool = False) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)
        self.method = method

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x += self.linear(self.norm(x)) * scale
        if self.method:
            x.add_(self.linear(self.norm(x)))
        else:
            x += self.linear(self.norm(x))
        return x, scale


@pytest.mark.parametrize("method", [False, True])
def test_a_block_that_writes_to_its_argument_gets_gradients_and_leaves_the_argument(method: bool) -> None:
    torch.manual_seed(0)
    block, x = Writing(method), torch.randn(2, 4, requires_grad=True)
    scale = torch.randn(2, 4)
    with oracle():
        (right,) = torch.autograd.grad(block(x * 1, scale)[0].square().sum(), x)
    given = x * 1
    before = given.detach().clone()
    with out_of_place([] if method else [block], [block] if method else []):
        out, same = block(given, scale=scale)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert torch.equal(gradient, right)
    assert torch.equal(given, before)
    assert type(out) is Tensor
    assert type(same) is Tensor


def test_writes_in_half_precision_stay_in_half_precision() -> None:
    x = torch.randn(4, dtype=torch.bfloat16, requires_grad=True) * 1
    y = torch.randn(4)
    expected = (x.detach().clone()).add_(y)
    rebound = x.as_subclass(Rebound)
    rebound += y
    with OutOfPlace():
        x += y
    assert x.dtype == rebound.dtype == torch.bfloat16
    assert torch.equal(x, expected)
    assert torch.equal(rebound, expected)


def test_without_gradients_blocks_write_in_place_as_ever() -> None:
    block, x = Writing(), torch.randn(2, 4)
    with out_of_place([block]), torch.no_grad():
        out, _ = block(x, torch.ones(2, 4))
    assert out.data_ptr() == x.data_ptr()


def test_a_result_that_only_the_caller_could_find_is_refused() -> None:
    class Scribbling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            return x.sum()

    with out_of_place([], [block := Scribbling()]), pytest.raises(ModelError, match="does not return it"):
        block(torch.ones(2, requires_grad=True) * 1)


def test_modules_are_as_they_were_also_after_an_error() -> None:
    block = Writing()
    with pytest.raises(RuntimeError), out_of_place([block]):
        block(torch.randn(2, 3), torch.ones(2, 3))
    assert "forward" not in vars(block)
