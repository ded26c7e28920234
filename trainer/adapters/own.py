"""Adapters that peft has not, beside any layer, also a quantised one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Own(nn.Module):
    """A layer with an adapter whose scale is always 1."""

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.enabled = True


class FullChange(Own):
    """W' = W + ΔW with the whole ΔW trained, as LyCORIS' `full` and ComfyUI's `diff`."""

    def __init__(self, base_layer: Any, *, hold_first_token: bool = False) -> None:
        """hold_first_token: row 0 of [B, tokens, outputs] gives no gradient, as in Custom Diffusion."""
        super().__init__(base_layer)
        self.hold_first_token = hold_first_token
        self.diff = nn.Parameter(torch.zeros(weight_shape(base_layer), device=base_layer.weight.device))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if not self.enabled:
            return y
        y = y + self._change(x.to(y.dtype), self.diff.to(y.dtype))
        if self.hold_first_token:
            y = torch.cat([y[:, :1].detach(), y[:, 1:]], dim=1)
        return y

    def _change(self, x: Tensor, diff: Tensor) -> Tensor:
        base = self.base_layer
        if isinstance(base, _CONVOLUTIONS):
            return base._conv_forward(x, diff, None)  # type: ignore[operator]
        return nn.functional.linear(x, diff)


class OutputRotation(Own):
    """Diagonal OFT: W' = Rᵀ W with R block-diagonal, R = (I + Q)(I - Q)⁻¹, Q = P - Pᵀ.

    The rotation is on the output side, as in LyCORIS and ComfyUI's `oft_blocks`. (peft rotates the input
    side, which no reader of such files could express.) Works beside any layer, also a quantised one.
    """

    def __init__(self, base_layer: Any, block_size: int) -> None:
        super().__init__(base_layer)
        outputs = output_size(base_layer)
        size = largest_block(outputs, block_size)
        device = base_layer.weight.device
        self.oft_blocks = nn.Parameter(torch.zeros(outputs // size, size, size, device=device))

    def rotation_minus_identity(self) -> Tensor:
        """R - I = 2 Q (I - Q)⁻¹, exactly zero for Q = 0."""
        q = self.oft_blocks - self.oft_blocks.transpose(1, 2)
        eye = torch.eye(q.shape[-1], device=q.device)
        return 2 * torch.linalg.solve(eye - q, q, left=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if not self.enabled:
            return y
        channels = 1 if isinstance(self.base_layer, _CONVOLUTIONS) else -1
        rotated = y.movedim(channels, -1)
        bias = getattr(self.base_layer, "bias", None)
        if bias is not None:
            rotated = rotated - bias.to(y)
        blocks = rotated.unflatten(-1, self.oft_blocks.shape[:2])
        change = torch.einsum("knm,...kn->...km", self.rotation_minus_identity().to(y.dtype), blocks)
        return y + change.flatten(-2).movedim(-1, channels)


def largest_block(outputs: int, limit: int) -> int:
    """The largest size up to `limit` that divides the outputs into whole blocks."""
    return max(n for n in range(1, min(limit, outputs) + 1) if outputs % n == 0)


def output_size(layer: Any) -> int:
    return layer.out_channels if hasattr(layer, "out_channels") else layer.out_features


def weight_shape(layer: Any) -> tuple[int, ...]:
    """Of a layer's weight, also where a quantised layer packs it into another shape."""
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
        return layer.out_features, layer.in_features
    return tuple(layer.weight.shape)
