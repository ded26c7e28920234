"""Writes in place: one table of them, and what is done about them when.

Many of ComfyUI's blocks add their residual in place (`x += attention(norm(x))`). That overwrites values which
autograd has saved for the backward pass: it raises, and inside a checkpointed block, whose recomputation sets
aside detached aliases, it takes the overwritten values without a word. In training they become out-of-place,
in the blocks that need it and in nothing else; values are the same bit for bit.

    the block                          runs eagerly               runs compiled
    writes nothing in place            as it is                   as it is
    writes by += (Family.in_place)     out_of_place.Rebound       the traced graph is rewritten (compiling)
    writes by calls, or is unknown     out_of_place.OutOfPlace    the same
    (Family.in_place_calls)

What a checkpointed block would still overwrite is refused before its first step (checkpointing).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NO_TWIN = {"as_strided", "bernoulli", "detach", "rename", "requires_grad", "resize", "resize_as"} | {
    f"{name}{axes}"
    for name in ("swap", "transpose", "t", "squeeze", "unsqueeze")
    for axes in ("", "axes", "dims")
}
"""`x.name_()` that does something else than writing the value of `x.name()` into x."""


def _copied(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(x.device, x.dtype, copy=True)


def _filled(x: Tensor, value: Any) -> Tensor:
    return torch.zeros_like(x) + value


def _twins() -> dict[Callable[..., Any], Callable[..., Any]]:
    twins: dict[Callable[..., Any], Callable[..., Any]] = {
        operator.iadd: operator.add,
        operator.isub: operator.sub,
        operator.imul: operator.mul,
        operator.itruediv: operator.truediv,
    }
    for owner in (torch.Tensor, torch, torch.nn.functional):
        for in_place in dir(owner):
            name = in_place.removesuffix("_")
            public = name != in_place and name[-1:] != "_" and name[:1] != "_"
            if public and name not in _NO_TWIN and hasattr(owner, name):
                twins[getattr(owner, in_place)] = getattr(owner, name)
    return twins | {
        torch.Tensor.copy_: _copied,
        torch.Tensor.zero_: torch.zeros_like,
        torch.Tensor.fill_: _filled,
    }


TWINS = _twins()
"""In-place function → the function that gives its result as a new tensor, of its own dtype and shape."""
