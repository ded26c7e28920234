"""ComfyUI's conditions as tensors and JSON, and back: what goes to disk of them.

A condition is {name: COND object}. A COND object is written as the name of its class in `comfy.conds` and its
value, in which each tensor is replaced by its place in a list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.conds
import torch
from torch import Tensor

from ..data.store import Entry
from .model import Condition

_PLAIN = (type(None), bool, int, float, str)


class _Unknown(Exception):  # noqa: N818 - caught below
    pass


def pack(condition: Condition) -> Entry | None:
    """None where there is something that would not come back as it is."""
    tensors: list[Tensor] = []
    try:
        constants = {name: [_class_name(cond), _tree(cond.cond, tensors)] for name, cond in condition.items()}
    except _Unknown:
        return None
    return Entry(_own(tensors), constants)


def pack_value(value: Any) -> Entry | None:
    """Of lists, dicts, tensors and constants; None as in `pack`."""
    tensors: list[Tensor] = []
    try:
        tree = _tree(value, tensors)
    except _Unknown:
        return None
    return Entry(_own(tensors), tree)


def unpack_value(entry: Entry) -> Any:
    return _value(entry, entry.constants)


def _own(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {str(i): t.detach().to("cpu", copy=True).contiguous() for i, t in enumerate(tensors)}


def same(one: Condition, other: Condition) -> bool:
    """Bit for bit; False where one of them cannot be packed."""
    a, b = pack(one), pack(other)
    if a is None or b is None or a.constants != b.constants:
        return False
    return all(torch.equal(t, b.tensors[name]) for name, t in a.tensors.items())


def unpack(entry: Entry) -> Condition:
    return {
        name: getattr(comfy.conds, cls)(_value(entry, node)) for name, (cls, node) in entry.constants.items()
    }


def _value(entry: Entry, node: Any) -> Any:
    kind, content = node
    return _KINDS[kind](content, lambda inner: _value(entry, inner), entry)


def _class_name(cond: Any) -> str:
    cls = type(cond)
    if getattr(comfy.conds, cls.__name__, None) is not cls or set(vars(cond)) != {"cond"}:
        raise _Unknown
    return cls.__name__


def _tree(value: Any, tensors: list[Tensor]) -> list[Any]:
    """[kind, content] for JSON, and the tensors on the way."""
    kind = type(value)
    if isinstance(value, Tensor):
        if kind not in (Tensor, torch.nn.Parameter) or value.is_meta or value.layout != torch.strided:
            raise _Unknown
        tensors.append(value)
        return ["tensor", len(tensors) - 1]
    if kind in _PLAIN:
        return ["plain", value]
    if kind in (list, tuple, torch.Size):
        return [kind.__name__, [_tree(v, tensors) for v in value]]
    if kind is dict and all(type(k) is str for k in value):
        return ["dict", {k: _tree(v, tensors) for k, v in value.items()}]
    raise _Unknown


_KINDS: dict[str, Callable[[Any, Callable[[Any], Any], Entry], Any]] = {
    "tensor": lambda content, value, entry: entry.tensors[str(content)],
    "plain": lambda content, value, entry: content,
    "list": lambda content, value, entry: [value(v) for v in content],
    "tuple": lambda content, value, entry: tuple(value(v) for v in content),
    "Size": lambda content, value, entry: torch.Size(value(v) for v in content),
    "dict": lambda content, value, entry: {k: value(v) for k, v in content.items()},
}
