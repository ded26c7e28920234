"""Find the blocks of a network, and replace the forward pass of a module for a while."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_MINOR = 0.02
"""A list with less than this part of the network's parameters is no list of its blocks."""


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Calls of `module` go to `forward`; the module object stays, and is as it was at the end."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def by_class(net: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """The outermost modules of these class names, in the network's order."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in net.modules():
        if type(module).__name__ in names and id(module) not in inside:
            found.append(module)
            inside.update(map(id, module.modules()))
    return found


def blocks(net: nn.Module, names: Collection[str] = ()) -> list[nn.Module]:
    """The repeated blocks of a network, in its order.

    names: class names of the blocks. Without any: the elements of the outermost `nn.ModuleList`s whose
    elements are of one class, have submodules, and together hold a fair part of the parameters.
    """
    if names:
        return by_class(net, names)
    total = _size(net)
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in net.modules():
        if not isinstance(module, nn.ModuleList) or id(module) in inside:
            continue
        one_class = len({type(m) for m in module}) == 1
        if one_class and any(module[0].children()) and _size(module) >= _MINOR * total:
            found += module
            inside.update(map(id, module.modules()))
    return found


def _size(module: nn.Module) -> int:
    """Parameters, without those of vocabularies."""
    counted = (m for m in module.modules() if not isinstance(m, nn.Embedding))
    return sum(p.numel() for m in counted for p in m.parameters(recurse=False))
