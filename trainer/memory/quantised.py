"""Frozen layers with a quantised weight: the host's own forward pass, and a backward pass that keeps nothing.

    forward     y = host(x)                     with its kernel, which may quantise x too
    backward    ∂L/∂x = ∂L/∂y · dequant(W)      straight through the rounding of x (Bengio et al. 2013)

Most quantised kernels have no backward pass, and autograd would keep a weight that the forward pass has cast
or dequantised: a whole model in full size. Here it is dequantised once more instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import grad

from .blocks import replaced_forward

Dequantise = Callable[[torch.dtype, torch.device], Tensor]
"""The full weight of a layer: [out, in] of a linear one, [out, in / groups, *kernel] of a convolution."""

_CONV_INPUT: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: grad.conv1d_input,
    nn.Conv2d: grad.conv2d_input,
    nn.Conv3d: grad.conv3d_input,
}


@contextmanager
def differentiable(layers: Mapping[nn.Module, Dequantise]) -> Iterator[None]:
    """These layers as the module's docstring says; each is as it was at the end."""
    with ExitStack() as stack:
        for layer, dequantise in layers.items():
            stack.enter_context(replaced_forward(layer, _forward(layer, dequantise)))
            layer.__dict__["dequantised"] = dequantise
            stack.callback(layer.__dict__.pop, "dequantised")
        yield


def is_quantised(layer: nn.Module) -> bool:
    """Whether `differentiable` holds it."""
    return "dequantised" in vars(layer)


def full_weight(layer: Any) -> Tensor:
    """The dequantised weight of a layer that is_quantised, in fp32."""
    return layer.dequantised(torch.float32, layer.weight.device)


def can_be_differentiable(layer: nn.Module) -> bool:
    """Linear layers, also of a class of their own, and convolutions that pad with a number of zeros."""
    if isinstance(layer, tuple(_CONV_INPUT)):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return hasattr(layer, "in_features") and hasattr(layer, "out_features")


def _forward(layer: nn.Module, dequantise: Dequantise) -> Callable[..., Tensor]:
    host = layer.forward
    convolution = isinstance(layer, tuple(_CONV_INPUT))

    @torch.compiler.disable  # some of the kernels cannot be traced; what is between layers is compiled
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Options of a convolution change its padding; such calls keep the host's own backward pass.
        if convolution and (args or kwargs) or not (torch.is_grad_enabled() and x.requires_grad):
            return host(x, *args, **kwargs)
        # OutOfPlace and Rebound follow torch's functions, and this call is none.
        x = x.view_as(x)
        return _Quantised.apply(x, layer, lambda x: host(x, *args, **kwargs), dequantise)  # type: ignore[return-value]

    return cast("Callable[..., Tensor]", forward)


class _Quantised(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, layer: nn.Module, host: Callable[[Tensor], Tensor], dequantise: Dequantise
    ) -> Tensor:
        ctx.layer, ctx.shape, ctx.dequantise = layer, x.shape, dequantise
        y = host(x.detach())
        # Networks write into what layers return, which autograd refuses for a view made in here.
        return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        weight = ctx.dequantise(grad_y.dtype, grad_y.device)
        return _input_gradient(ctx.layer, weight, grad_y, ctx.shape), None, None, None


def _input_gradient(layer: Any, weight: Tensor, grad_y: Tensor, shape: torch.Size) -> Tensor:
    """[*shape] from [..., out], or from [batch, out, ...] of a convolution."""
    for kind, input_gradient in _CONV_INPUT.items():
        if isinstance(layer, kind):
            steps = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return input_gradient(shape, weight, grad_y, *steps)
    return grad_y @ weight
