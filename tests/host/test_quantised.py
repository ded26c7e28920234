"""Beside quantised weights: the host's forward pass, the dequantised layer's gradients, nothing kept."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.ops
import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.config import ADAPTER_KINDS, AdapterConfig
from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.host.quantised import quantised_layers_differentiable
from in_graph_lora.trainer.host.staging import trainable_view
from in_graph_lora.trainer.memory.out_of_place import OutOfPlace

from ..quantised import FORMATS, full, linear

INPUTS, OUTPUTS = 128, 64
every_format = pytest.mark.parametrize("name", FORMATS)
pytestmark = pytest.mark.filterwarnings("ignore:.*_scaled_mm.*")


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def net_of(layer: nn.Module) -> nn.Module:
    """A network whose only layer that adapters go to is this one."""
    net = nn.Module()
    net.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"to_q": layer})})])
    return net


def layer_of(name: str, disabled: tuple[str, ...] = ()) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS, generator=g) / INPUTS**0.5
    return linear(weight, torch.randn(OUTPUTS, generator=g), FORMATS[name], disabled)


def dense(layer: nn.Module) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features)  # type: ignore[arg-type]
    plain.weight.data, plain.bias.data = full(layer), layer.bias.detach().float().clone()  # type: ignore[operator]
    return plain.requires_grad_(False)


@contextmanager
def lent(net: nn.Module) -> Iterator[None]:
    """As `borrowed` lends a model."""
    with torch.inference_mode(False), trainable_view(net), quantised_layers_differentiable(net):
        yield


def data(seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, INPUTS, generator=g).requires_grad_()
    return x, torch.randn(2, 5, OUTPUTS, generator=g)


def trained(net: nn.Module, kind: str, dropout: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of the input and of the adapter's weights, of which none is zero."""
    x, slope = data()
    alpha = 0 if kind in ("oft", "full") else 3
    config = AdapterConfig(kind=kind, rank=4, alpha=alpha, dropout=dropout)  # type: ignore[arg-type]
    with injected(net, config, seed=0) as adapter:
        g = torch.Generator().manual_seed(3)
        for p in adapter.parameters():
            p.data = p.data + 0.1 * torch.randn(p.shape, generator=g)
        with adapter.dropout_draws(0, 0):
            y = net.get_submodule("blocks.0.attn.to_q")(x)
        (y * slope).sum().backward()
        named = adapter.layers["blocks.0.attn.to_q"].named_parameters()
        return y.detach(), {"x": x.grad, **{n: p.grad for n, p in named if p.grad is not None}}


@every_format
@pytest.mark.parametrize("emulated", [False, True], ids=["computed in the format", "dequantised by the host"])
def test_output_is_the_hosts_and_the_inputs_gradient_that_of_the_full_weight(
    name: str, emulated: bool
) -> None:
    form = FORMATS[name]
    layer = layer_of(name, (form.algo,) if emulated else ())
    x, slope = data()
    with torch.inference_mode():
        host = layer(x.detach().clone())
    with lent(layer):
        y = layer(x)
        assert torch.equal(y, host)
        y.backward(slope)
    assert x.grad is not None
    assert torch.equal(x.grad, slope @ full(layer))
    assert relative(y, dense(layer)(x)) < max(1e-6, form.rounding)


@every_format
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_has_the_gradients_that_it_has_beside_the_full_weight(name: str, kind: str) -> None:
    layer = layer_of(name)
    with lent(net := net_of(layer)):
        y, gradients = trained(net, kind)
    expected_y, expected = trained(net_of(dense(layer)), kind)
    assert gradients.keys() == expected.keys()
    assert len(gradients) >= 2
    rounding = max(1e-5, FORMATS[name].rounding)
    assert relative(y, expected_y) < rounding
    for key, gradient in gradients.items():
        # These two multiply the layer's output, of which the input may be rounded; all others only its slope.
        of_output = "magnitude" in key or "oft_blocks" in key
        assert relative(gradient, expected[key]) < (2 * rounding if of_output else 1e-5), key


@every_format
def test_dora_with_dropout_has_them_too(name: str) -> None:
    layer = layer_of(name)
    with lent(net := net_of(layer)):
        y, gradients = trained(net, "dora", dropout=0.3)
    expected_y, expected = trained(net_of(dense(layer)), "dora", dropout=0.3)
    rounding = max(1e-5, 1.5 * FORMATS[name].rounding)
    assert relative(y, expected_y) < rounding
    assert all(relative(gradients[k], expected[k]) < 2 * rounding for k in expected)


def full_copies(layer: nn.Module) -> int:
    """Tensors with as many floats as the layer's weight has values, of which none is the layer's own."""
    gc.collect()
    found = [o for o in gc.get_objects() if type(o) is Tensor and o.dtype.is_floating_point]
    return sum(o.numel() == OUTPUTS * INPUTS and o.dtype.itemsize > 1 for o in found)


@every_format
@pytest.mark.parametrize("emulated", [False, True])
def test_between_the_passes_no_copy_of_the_weight_exists(name: str, emulated: bool) -> None:
    layer = layer_of(name, (FORMATS[name].algo,) if emulated else ())
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    x, slope = data()
    with lent(layer):
        before = full_copies(layer)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = layer(x)
        assert kept == []
        assert full_copies(layer) == before
        y.backward(slope)


@every_format
def test_what_a_network_writes_into_the_output_or_the_input_is_seen(name: str) -> None:
    layer = layer_of(name)
    reference = dense(layer)

    def gradient(module: nn.Module) -> Tensor:
        x, slope = data()
        with OutOfPlace() as mode:
            h = x * 1
            h.mul_(2)
            y = module(h)
            y += 1
            y.mul_(y)
            y = mode.current(y)
        (y * slope).sum().backward()
        assert x.grad is not None
        return x.grad

    def without_mode(module: nn.Module) -> None:
        x, _ = data()
        y = module(x)
        y += 1
        y.sum().backward()

    with lent(layer):
        assert relative(gradient(layer), gradient(reference)) < max(1e-5, 3 * FORMATS[name].rounding)
        without_mode(layer)


def test_fp8_matrix_multiplication_clamps_no_input_that_others_read() -> None:
    layer = comfy.ops.fp8_ops.Linear(INPUTS, OUTPUTS, dtype=torch.float8_e4m3fn)
    layer.load_state_dict({"weight": torch.randn(OUTPUTS, INPUTS), "bias": torch.zeros(OUTPUTS)})
    x, slope = data()
    h = x * 1000
    square = h.square()  # keeps h
    with lent(layer):
        (square.mean() + (layer(h) * slope).sum()).backward()
    assert h.detach().abs().max() > 448
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("kind", ["Conv1d", "Conv2d", "Conv3d"])
def test_convolutions_in_fp8(kind: str) -> None:
    n = int(kind[4])
    shape = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1}
    layer = getattr(comfy.ops.manual_cast, kind)(4, 6, **shape, dtype=torch.float8_e4m3fn)
    layer.load_state_dict({"weight": torch.randn(6, 4, *[3] * n), "bias": torch.randn(6)})
    plain = getattr(nn, kind)(4, 6, **shape)
    plain.weight.data, plain.bias.data = layer.weight.float(), layer.bias.float()
    x = torch.randn(2, 4, *[8] * n)
    gradients = []
    kept: list[Tensor] = []
    with lent(layer.requires_grad_(False)):
        for module in (layer, plain.requires_grad_(False)):
            own = x.clone().requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
                y = module(own)
            if module is layer:
                assert kept == []
            y.square().sum().backward()
            gradients.append(own.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_what_multiplies_the_input_multiplies_its_gradient() -> None:
    layer = layer_of("int8")
    layer.pre_quant_scale = nn.Parameter(torch.rand(INPUTS), requires_grad=False)
    x, slope = data()
    with lent(layer):
        layer(x).backward(slope)
    torch.testing.assert_close(x.grad, (slope @ full(layer)) * layer.pre_quant_scale)


def test_a_layer_that_computes_in_a_way_of_its_own_is_refused_by_name() -> None:
    class Experts(nn.Module):
        pass

    experts = Experts()
    experts.weight = layer_of("int8").weight
    with pytest.raises(ModelError, match=r"layer blocks\.0\.attn\.to_q \(Experts\)"), lent(net_of(experts)):
        pass


@every_format
def test_weights_and_layer_are_the_same_objects_afterwards_also_after_an_error(name: str) -> None:
    layer = layer_of(name)
    weight, values, own = layer.weight, full(layer), dict(vars(layer))
    for error in (None, RuntimeError):
        with pytest.raises(error) if error else torch.enable_grad(), lent(net := net_of(layer)):
            trained(net, "lora")
            if error:
                raise error
        assert layer.weight is weight
        assert torch.equal(full(layer), values)
        assert vars(layer) == own
