"""LoRA's forward pass: base(x) + s·B(A(x)) in few kernels.

These are peft's layers with its weights, names and settings; only the forward pass is ours. A and B, kept in
fp32, are cast to the dtype that the base layer computes in, which runs as it does without an adapter: there
is no autocast. The product goes into the base layer's output while it is computed. Autograd keeps
x, A(x) and the two casts.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ADAPTER = "default"
"""The name that peft keeps our adapter under."""


class LowRank(nn.Module):
    """What is the same for all shapes of layers."""

    base_layer: nn.Module
    lora_A: nn.ModuleDict  # noqa: N815
    lora_B: nn.ModuleDict  # noqa: N815
    lora_dropout: nn.ModuleDict
    scaling: dict[str, float]
    _disable_adapters: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        a: Tensor = self.lora_A[ADAPTER].weight  # type: ignore[assignment]
        b: Tensor = self.lora_B[ADAPTER].weight  # type: ignore[assignment]
        scale = self.scaling[ADAPTER]
        b = b if scale == 1 else scale * b
        if self.joins(x):
            # OutOfPlace and Rebound follow torch's functions, and the call of _Joined is none.
            x, h = _Joined.apply(x.view_as(x), a.to(x.dtype))  # type: ignore[misc]
            y = self.base_layer(x, *args, **kwargs)
        else:
            y = self.base_layer(x, *args, **kwargs)
            h = self.down(self.lora_dropout[ADAPTER](x).to(y.dtype), a.to(y.dtype))
        return self.up(y, h.to(y.dtype), b.to(y.dtype))

    def joins(self, x: Tensor) -> bool:
        """Whether the gradients of x from the base layer and from A are added by `_Joined`."""
        return False

    def down(self, x: Tensor, a: Tensor) -> Tensor:
        """A(x)"""
        raise NotImplementedError

    def up(self, y: Tensor, h: Tensor, b: Tensor) -> Tensor:
        """y + B(h), written into y, which nothing else needs: these layers keep no output."""
        raise NotImplementedError


class Linear(LowRank, lora.Linear):
    def joins(self, x: Tensor) -> bool:
        """In half precision, where it saves time and a rounding. fp32 keeps the order of peft's sums, and a
        compiler has its own."""
        if x.dtype == torch.float32 or not x.requires_grad or not torch.is_grad_enabled():
            return False
        dropout = self.lora_dropout[ADAPTER]
        return not torch.compiler.is_compiling() and (type(dropout) is nn.Identity or not dropout.training)

    def down(self, x: Tensor, a: Tensor) -> Tensor:
        return x.reshape(-1, a.shape[1]) @ a.t()

    def up(self, y: Tensor, h: Tensor, b: Tensor) -> Tensor:
        # Autograd takes a write into a view apart into copies; to it, this is none.
        flat: Tensor = torch.ops.aten._unsafe_view(y.contiguous(), [-1, y.shape[-1]])
        return flat.addmm_(h, b.t()).view(y.shape)


class _Joined(torch.autograd.Function):
    """(x for the base layer, A(x)). The gradient from A goes into the base layer's while it is computed: a
    linear layer makes that one anew, for nobody else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        ctx.save_for_backward(x, a)
        return x, x.reshape(-1, a.shape[1]) @ a.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_h: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        x, a = ctx.saved_tensors
        grad_a = grad_h.t() @ x.reshape(-1, a.shape[1]) if ctx.needs_input_grad[1] else None
        return grad_x.reshape(-1, a.shape[1]).addmm_(grad_h, a).view(x.shape), grad_a


class _Convolution(LowRank):
    def down(self, x: Tensor, a: Tensor) -> Tensor:
        layer: Any = self.lora_A[ADAPTER]
        return layer._conv_forward(x, a, None)

    def up(self, y: Tensor, h: Tensor, b: Tensor) -> Tensor:
        layer: Any = self.lora_B[ADAPTER]
        return y.add_(layer._conv_forward(h, b, None))


class Conv1d(_Convolution, lora.layer.Conv1d):
    pass


class Conv2d(_Convolution, lora.Conv2d):
    pass


class Conv3d(_Convolution, lora.layer.Conv3d):
    pass


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
}
"""Plain layer → the layer that adapts one of its shape."""
