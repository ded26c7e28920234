"""A digest of what Python objects say and do, the same in every process.

Models carry more than weights: patches are closures over a node's settings, wrappers, sampling objects. What
cannot be put into words that another process would use too (an open file, a generator) is collected in
`Digest.unknown`: two such objects cannot be known to be the same.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import types
import uuid
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SAMPLES = 64
"""Values that are read of a tensor, evenly spaced: reading a checkpoint whole takes as long as loading it,
and two checkpoints of one family differ in almost every value."""

_DEPTH = 60
_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device)
_IDENTITY_ONLY = (uuid.UUID,)  # drawn anew in every process


def digest(*values: Any) -> tuple[str, list[str]]:
    """(sha256 in hex, what could not be digested)"""
    first = Digest(set())
    first.add(values)
    second = Digest(first.states)
    second.add(values)
    return second.hexdigest(), second.unknown


class Digest:
    def __init__(self, states: Set[int]) -> None:
        """states: ids of the cells that are no settings, found by an earlier pass."""
        self._hash = hashlib.sha256()
        self._skipped = states
        self._inside: list[int] = []
        self.states: set[int] = set()
        """ids of closure cells that a function writes to: what it remembers of its last call."""
        self.unknown: list[str] = []

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any, where: str = "") -> None:
        """where: the way to the value, for `unknown`."""
        if isinstance(value, _PLAIN):
            self._say(type(value).__name__, repr(value))
        elif isinstance(value, _IDENTITY_ONLY):
            self._say(type(value).__name__)
        elif isinstance(value, Tensor):
            self._tensor(value, where)
        elif id(value) in self._inside:
            self._say("again", str(self._inside.index(id(value))))
        elif len(self._inside) >= _DEPTH:
            self.unknown.append(f"{where} is nested too deeply")
        else:
            self._inside.append(id(value))
            self._compound(value, where)
            self._inside.pop()

    def _compound(self, value: Any, where: str) -> None:
        handle = next((h for kinds, h in self._handlers() if isinstance(value, kinds)), self._object)
        handle(value, where)

    def _handlers(self) -> Iterable[tuple[Any, Callable[[Any, str], None]]]:
        return (
            (np.ndarray | np.generic, lambda v, w: self._tensor(torch.as_tensor(np.asarray(v)), w)),
            (Mapping, self._mapping),
            (list | tuple, self._sequence),
            (Set, lambda v, w: self._say(type(v).__name__, *sorted(map(repr, v)))),
            (enum.Enum, lambda v, w: self._say(str(v))),
            (type | types.ModuleType | types.BuiltinFunctionType, self._named),
            (functools.partial, lambda v, w: self._all(_parts(v, "func", "args", "keywords"), w)),
            (types.MethodType, lambda v, w: self._all(_parts(v, "__self__", "__func__"), w)),
            (types.FunctionType, self._function),
            (nn.Module, self._module),
        )

    def _sequence(self, value: Any, where: str) -> None:
        self._say(type(value).__name__, str(len(value)))
        self._all(enumerate(value), where)

    def _named(self, value: Any, where: str) -> None:
        self._say(getattr(value, "__module__", "") or "", getattr(value, "__qualname__", value.__name__))

    def _say(self, *words: str) -> None:
        for word in words:
            self._hash.update(f"{len(word)}:".encode() + word.encode("utf-8", "surrogatepass"))

    def _all(self, named: Iterable[tuple[Any, Any]], where: str) -> None:
        for name, value in named:
            self._say(str(name))
            self.add(value, f"{where}.{name}" if where else str(name))

    def _mapping(self, value: Mapping[Any, Any], where: str) -> None:
        self._say("mapping", str(len(value)))
        plain = all(isinstance(key, (*_PLAIN, tuple)) for key in value)
        if plain:
            self._all(sorted(value.items(), key=lambda item: repr(item[0])), where)
        else:  # keys that are objects have no order of their own
            self._all(((type(k).__name__, (k, v)) for k, v in value.items()), where)

    def _tensor(self, value: Tensor, where: str) -> None:
        self._say("tensor", str(tuple(value.shape)), str(value.dtype))
        if value.is_meta:  # ComfyUI's sign for a weight that the file lacks
            return
        with torch.no_grad():
            if type(value) not in (Tensor, nn.Parameter, nn.Buffer) and hasattr(value, "__tensor_flatten__"):
                names, constants = value.__tensor_flatten__()  # type: ignore[attr-defined]  # a quantised tensor
                self._say(type(value).__name__)
                self._all(((name, getattr(value, name)) for name in names), where)
                self.add(constants, where)
                return
            flat = value.detach().reshape(-1)
            if flat.numel():
                step = max(1, flat.numel() // SAMPLES)
                some = flat[::step][:SAMPLES]
                some = some if some.is_complex() else some.to("cpu", torch.float64)
                self._hash.update(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def _function(self, value: types.FunctionType, where: str) -> None:
        self._say("function", value.__module__ or "", value.__qualname__)
        self._code(value.__code__)
        cells = list(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        written = _written_names(value.__code__)
        self.states |= {id(cell) for name, cell in cells if name in written}
        settings = [(name, cell) for name, cell in cells if id(cell) not in self._skipped]
        filled = ((name, _content(cell)) for name, cell in settings)
        self._all(filled, where)
        self._all((("defaults", value.__defaults__), ("keywords", value.__kwdefaults__)), where)

    def _code(self, code: types.CodeType) -> None:
        self._hash.update(code.co_code)
        self._say(*code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self._say(
                    *sorted(map(repr, constant)) if isinstance(constant, frozenset) else [repr(constant)]
                )

    def _module(self, value: nn.Module, where: str) -> None:
        """Its weights, and what decides what it does with them."""
        self._say("module", type(value).__module__, type(value).__qualname__)
        own = {k: v for k, v in vars(value).items() if isinstance(v, (*_PLAIN, tuple))}
        self._all(sorted(own.items()), where)
        for name, tensor in [*value.named_parameters(), *value.named_buffers()]:
            self._say(name)
            self._tensor(tensor, f"{where}.{name}")

    def _object(self, value: Any, where: str) -> None:
        kind = type(value)
        self._say("object", kind.__module__, kind.__qualname__)
        if _is_node(value):
            return  # what a node was told is in the closure; what it keeps in itself is its own memory
        slots = [name for cls in kind.__mro__ for name in _slots(cls)]
        content = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        content |= getattr(value, "__dict__", {})
        if not content and not _is_empty_object(value):
            self.unknown.append(f"{where or 'a value'} ({kind.__module__}.{kind.__qualname__})")
        self._all(sorted(content.items()), where)


def _parts(value: Any, *names: str) -> Iterable[tuple[str, Any]]:
    return ((name, getattr(value, name)) for name in names)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


@functools.lru_cache(maxsize=1024)
def _written_names(code: types.CodeType) -> frozenset[str]:
    """Names from around it that a function assigns to (`nonlocal`)."""
    stored = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_DEREF", "DELETE_DEREF")}
    return frozenset(stored & set(code.co_freevars))


def _is_node(value: Any) -> bool:
    return hasattr(type(value), "RETURN_TYPES") or hasattr(type(value), "define_schema")


def _slots(cls: type) -> Iterable[str]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else [s for s in slots if s not in ("__dict__", "__weakref__")]


def _is_empty_object(value: Any) -> bool:
    """An instance of a Python class without attributes says all by its class."""
    return type(value) is object or hasattr(value, "__dict__") or "__slots__" in vars(type(value))
