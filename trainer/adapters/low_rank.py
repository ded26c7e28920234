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
        y = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters:
            return y
        a: Tensor = self.lora_A[ADAPTER].weight  # type: ignore[assignment]
        b: Tensor = self.lora_B[ADAPTER].weight  # type: ignore[assignment]
        scale = self.scaling[ADAPTER]
        b = b if scale == 1 else scale * b
        x = self.lora_dropout[ADAPTER](x)
        return self.added(y, x.to(y.dtype), a.to(y.dtype), b.to(y.dtype))

    def added(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """y + B(A(x)), written into y, which nothing else needs: linear layers keep no output."""
        raise NotImplementedError


class Linear(LowRank, lora.Linear):
    def added(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        h = x.reshape(-1, a.shape[1]) @ a.t()
        # Autograd takes a write into a view apart into copies; to it, this is none.
        flat: Tensor = torch.ops.aten._unsafe_view(y.contiguous(), [-1, y.shape[-1]])
        return flat.addmm_(h, b.t()).view(y.shape)


class _Convolution(LowRank):
    def added(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        first: Any = self.lora_A[ADAPTER]
        second: Any = self.lora_B[ADAPTER]
        h = first._conv_forward(x, a, None)
        return y.add_(second._conv_forward(h, b, None))


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
