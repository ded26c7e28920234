"""Settings by flat names, such as `adapter.rank`: the fields of TrainConfig, and `framing.…` of Framing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ..config import TrainConfig
from ..data.framing import Framing
from ..errors import ConfigError

NODES = {
    "adapter": "LoRA Adapter",
    "objective": "Train Objective",
    "prior": "Prior Preservation",
    "optimizer": "Train Optimizer",
    "data": "Load Dataset",
    "memory": "Train Memory",
    "save": "Train Preview",
    "preview": "Train Preview",
    "validation": "Train Preview",
    "framing": "Image Framing",
}
"""Section → the node that has its fields."""
_ON_TRAIN_LORA = {"steps", "seed", "adapter.rank", "adapter.alpha", "optimizer.learning_rate"}
_ON_TRAIN_LORA |= {"data.batch_size"}
_NOT_HERE = {"name", "adapter.start_from", "adapter.start_alpha"}
"""Of a run, and not of a way to train."""
_NO_OUTPUT = {"objective.own_loss", "data.caption_syntax", "data.edit_node", "validation.judge"}
"""Training Recipe has no output for these, nor for the section `embedding`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    config: TrainConfig
    framing: Framing


def _flat() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, part in (("", TrainConfig()), ("framing", Framing())):
        for f in fields(part):
            value = getattr(part, f.name)
            name = f"{section}.{f.name}" if section else f.name
            if is_dataclass(value):
                found |= {f"{f.name}.{inner.name}": getattr(value, inner.name) for inner in fields(value)}
            else:
                found[name] = value
    return {
        name: value
        for name, value in found.items()
        if name not in _NOT_HERE | _NO_OUTPUT and not name.startswith("embedding.")
    }


DEFAULTS: Mapping[str, Any] = _flat()
"""Name → the default, whose type is the setting's."""


def node_of(name: str) -> str:
    """The node on which a user finds the setting."""
    if name in _ON_TRAIN_LORA:
        return "Train LoRA"
    return NODES.get(name.partition(".")[0], "Train Optimizer")  # epochs


def typed(name: str, value: Any) -> Any:
    """`value` as the setting's own type. Raises ConfigError for an unknown name and another kind of value."""
    if name not in DEFAULTS:
        raise ConfigError(f"there is no setting {name!r}; use one such as adapter.rank or objective.shift")
    default = DEFAULTS[name]
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if isinstance(default, float) and number:
        return float(value)
    if isinstance(default, int) and not isinstance(default, bool) and number and value == int(value):
        return int(value)
    if type(value) is not type(default):
        raise ConfigError(f"{name} is {value!r}; it must be of the kind of {default!r}")
    return value


def settings(values: Mapping[str, Any]) -> Settings:
    """The config and framing with these values and the defaults elsewhere. Raises ConfigError."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        sections.setdefault(section, {})[field] = typed(name, value)
    framing = Framing(**sections.pop("framing", {}))
    top = sections.pop("", {})
    return Settings(config=TrainConfig.from_dict({**top, **sections}), framing=framing)
