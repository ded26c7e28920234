"""Loss functions that Python code gives, and the name by which a run with one is found again."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from .config import TrainConfig
from .errors import ConfigError

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(prediction [B, ...], target [B, ...], sigma [B]) → the loss of each element, of the prediction's shape.

All fp32, on the model's device, in the model's own target space. Means, masks and weights are applied after
it. sigma: noise level of each picture, as in `noise.NoiseProcess`."""


def with_own_loss(config: TrainConfig, function: LossFunction | None) -> TrainConfig:
    """The config with a name for the function: the one it states, otherwise that of the function's source.

    Raises ConfigError where there is a name and no function, or a function that only a stated name can tell
    from others.
    """
    stated = config.objective.own_loss
    if function is None:
        if stated:
            raise ConfigError(
                f"these settings train with the loss function {stated!r} of a Python program, and none is"
                " given; pass loss=, or leave own_loss of ObjectiveConfig empty"
            )
        return config
    if not callable(function):
        raise ConfigError(f"loss is {function!r}; pass a function of prediction, target and sigma")
    return replace(config, objective=replace(config.objective, own_loss=stated or source_name(function)))


def source_name(function: LossFunction) -> str:
    """The function's name and a digest of its source, of functions beside it that it calls, and of the
    numbers and texts that it reads. Raises ConfigError where these do not tell all that it does."""
    digest = hashlib.sha256(json.dumps(list(_parts(function, set()))).encode()).hexdigest()
    return f"{getattr(function, '__name__', '')} {digest[:16]}"


def own_element_loss(
    function: LossFunction, name: str, prediction: Tensor, target: Tensor, sigma: Tensor
) -> Tensor:
    """What it returns, checked. Raises ConfigError where that is no loss of each element."""
    elements = function(prediction.float(), target.float(), sigma.float())
    if not isinstance(elements, Tensor) or elements.shape != prediction.shape:
        shape = list(elements.shape) if isinstance(elements, Tensor) else type(elements).__name__
        raise ConfigError(
            f"the loss function {name!r} gave {shape} for a prediction of {list(prediction.shape)}; return"
            " the loss of each element, without a mean"
        )
    if torch.is_grad_enabled() and prediction.requires_grad and not elements.requires_grad:
        raise ConfigError(
            f"the loss function {name!r} gave a loss without a gradient; compute it from the prediction by"
            " torch's operations"
        )
    return elements.float()


def _parts(function: Any, seen: set[int]) -> Iterator[str]:
    """Texts that tell what a function does."""
    if not isinstance(function, FunctionType):
        raise _unknown(function, "it is no plain function")
    if id(function) in seen:
        return
    seen.add(id(function))
    try:
        yield inspect.getsource(function)
    except (OSError, TypeError):
        raise _unknown(function, "its source is not in a file") from None
    for name, value in _read(function).items():
        if isinstance(value, FunctionType) and value.__module__ == function.__module__:
            yield name
            yield from _parts(value, seen)
        elif callable(value) or isinstance(value, ModuleType):  # a library's
            known = getattr(value, "__module__", ""), getattr(value, "__qualname__", ""), type(value).__name__
            if not isinstance(value, ModuleType) and not known[1]:
                raise _unknown(function, f"it uses the object {name}")
            yield f"{name} {known} {getattr(value, '__name__', '')}"
        elif _plain(value):
            yield f"{name} {value!r}"
        else:
            raise _unknown(function, f"it reads {name}, {type(value).__name__}")


def _read(function: FunctionType) -> dict[str, Any]:
    """What it finds under each name outside of itself, and its defaults."""
    outside, found = function.__globals__, dict(inspect.getclosurevars(function).nonlocals)
    found |= {name: outside[name] for name in sorted({*_names(function.__code__)}) if name in outside}
    return {**found, "defaults": (function.__defaults__ or (), function.__kwdefaults__ or {})}


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_plain, value)) and all(map(_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _unknown(function: Any, why: str) -> ConfigError:
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return ConfigError(
        f"the loss function {name} cannot be told from others by its source ({why}); name it and what it is"
        ' set to, such as ObjectiveConfig(own_loss="charbonnier 0.01")'
    )
