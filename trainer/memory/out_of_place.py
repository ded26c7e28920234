"""Blocks that run without writing in place; `in_place` says when which of the two ways is used.

`Rebound`: the block is given tensors whose `+=` makes a new tensor. Costs next to nothing; does for blocks
that write by augmented assignment to their own arguments.

`OutOfPlace`: a mode in which every in-place operation makes a new tensor. The old one, and other views of its
memory, stand for the new one from then on, so that every later operation of the region sees what it would
have seen: also when a method's result is dropped (`x.addcmul_(a, b)`) or one of several names for a tensor is
written to. It does for any block, and costs some microseconds for each call of a torch function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from .blocks import replaced_forward
from .in_place import TWINS


class OutOfPlace(TorchFunctionMode):
    """See the module's docstring. Outside of gradient mode everything is as it is without it."""

    def __init__(self) -> None:
        super().__init__()
        self._now: dict[int, tuple[Tensor, Tensor]] = {}
        """id of a tensor that was written to → itself (so that the id stays its own) and what it is now."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._now:
            args, kwargs = self.current(args), self.current(kwargs)
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func is torch.Tensor.__setitem__:
            return self._set_item(*args)
        twin = TWINS.get(func)
        if twin is None and kwargs.get("inplace") is True:  # torch.nn.functional.silu(x, inplace=True)
            twin, kwargs = func, {**kwargs, "inplace": False}
        if twin is None:
            return func(*args, **kwargs)
        x, *rest = args
        return self._write(x, twin(x, *rest, **kwargs))

    def current(self, values: Any) -> Any:
        """`values` (nested) with each tensor that was written to replaced by what it is now."""
        if isinstance(values, Tensor):
            return self._current(values)
        if type(values) is tuple:
            return tuple([self.current(v) for v in values])
        if type(values) is list:
            return [self.current(v) for v in values]
        if type(values) is dict:
            return {k: self.current(v) for k, v in values.items()}
        return values

    def check_inputs(self, module: nn.Module, inputs: Any, out: Any) -> None:
        """Raises ModelError when the module wrote into an input, as a result that it does not return."""
        if self._now:
            returned = {_memory(t) for t in _tensors(out)}
            now = ((x, self._current(x)) for x in _tensors(inputs))
            if any(new is not x and _memory(new) not in returned for x, new in now):
                raise ModelError(
                    f"{type(module).__name__} writes its result into its input and does not return it;"
                    " this model cannot be trained"
                )

    def _current(self, x: Tensor) -> Tensor:
        while (entry := self._now.get(id(x))) is not None:
            x = entry[1]
        if x._base is None:
            return x
        base = self._current(x._base)
        return x if base is x._base else base.as_strided(x.shape, x.stride(), x.storage_offset())

    def _write(self, x: Tensor, value: Tensor) -> Tensor:
        """From now on x has this value. Returns the tensor that has it."""
        value = _like(value, x)
        base = x._base
        if base is None:
            self._now[id(x)] = (x, value)
            return value
        if x.numel() == base.numel() and x.is_contiguous() and base.is_contiguous():
            self._now[id(base)] = (base, value.view(base.shape))
            return value
        whole = _like(base.clone(), base)
        whole.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(value)
        self._now[id(base)] = (base, whole)
        return whole.as_strided(x.shape, x.stride(), x.storage_offset())

    def _set_item(self, x: Tensor, index: Any, value: Any) -> None:
        changed = x.clone()
        changed[index] = value
        self._write(x, changed)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for v in values:
            yield from _tensors(v)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _like(value: Tensor, x: Tensor) -> Tensor:
    """value in x's shape, dtype and strides, as writing it into x would leave it."""
    value = value.to(x.dtype)
    if value.shape != x.shape:
        value = value.expand(x.shape)
    if value.stride() == x.stride():
        return value
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(value)


def _any_write(module: nn.Module) -> Callable[..., Any]:
    forward = module.forward

    def out_of_place_forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with OutOfPlace() as mode:
            out = forward(*args, **kwargs)
        out = mode.current(out)
        mode.check_inputs(module, (args, kwargs), out)
        return out

    return out_of_place_forward


class Rebound(Tensor):
    """Its augmented assignments leave it as it is; results of all operations are ordinary tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __iadd__(self, other: Any) -> Tensor:  # type: ignore[override]
        return (self + other).to(self.dtype).as_subclass(Rebound)

    def __isub__(self, other: Any) -> Tensor:  # type: ignore[override]
        return (self - other).to(self.dtype).as_subclass(Rebound)

    def __imul__(self, other: Any) -> Tensor:  # type: ignore[override]
        return (self * other).to(self.dtype).as_subclass(Rebound)

    def __itruediv__(self, other: Any) -> Tensor:  # type: ignore[override]
        return (self / other).to(self.dtype).as_subclass(Rebound)


def _assignments(module: nn.Module) -> Callable[..., Any]:
    forward = module.forward

    def rebinding_forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        args = tuple([a.as_subclass(Rebound) if isinstance(a, Tensor) else a for a in args])
        kwargs = {k: v.as_subclass(Rebound) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        return _ordinary(forward(*args, **kwargs))

    return rebinding_forward


def _ordinary(out: Any) -> Any:
    if isinstance(out, Rebound):
        return out.as_subclass(Tensor)
    if type(out) in (tuple, list):
        return type(out)(_ordinary(o) for o in out)
    return out


@contextmanager
def out_of_place(assigning: Iterable[nn.Module], calling: Iterable[nn.Module] = ()) -> Iterator[None]:
    """The forward pass of these modules writes nothing in place that autograd needs.

    assigning: they write by augmented assignment to their arguments; calling: in any way.
    """
    with ExitStack() as stack:
        for module in assigning:
            stack.enter_context(replaced_forward(module, _assignments(module)))
        for module in calling:
            stack.enter_context(replaced_forward(module, _any_write(module)))
        yield
