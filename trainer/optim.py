"""Optimizers, learning-rate schedules and the moving average, all from kept libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from .config import OptimizerConfig
from .errors import ConfigError
from .muon import MuonAndAdamW, check_muon
from .options.optimizer import RATE_FOUND

ParameterGroups = list[dict[str, Any]]


def _import(module: str, package: str, optimizer: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"optimizer {optimizer!r} needs the package {package}; install it with"
            f" 'pip install {package}' in ComfyUI's Python, or choose adamw"
        ) from error


def _adamw(groups: ParameterGroups, c: OptimizerConfig) -> torch.optim.Optimizer:
    fused = all(p.device.type == "cuda" for g in groups for p in g["params"])
    return torch.optim.AdamW(
        groups, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, fused=fused or None
    )


def _adamw8bit(groups: ParameterGroups, c: OptimizerConfig) -> torch.optim.Optimizer:
    bnb = _import("bitsandbytes", "bitsandbytes", c.name)
    return bnb.optim.AdamW8bit(groups, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay)


def _adafactor(groups: ParameterGroups, c: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, weight_decay=c.weight_decay)


def _lion(groups: ParameterGroups, c: OptimizerConfig) -> torch.optim.Optimizer:
    # Lion's own second beta is 0.99; AdamW's 0.999 is only our default, not a choice for Lion.
    betas = (0.9, 0.99) if c.betas == (0.9, 0.999) else c.betas
    module = _import(*_PACKAGES[c.name], c.name)
    made = module.optim.Lion8bit if c.name == "lion8bit" else module.Lion
    return made(groups, betas=betas, weight_decay=c.weight_decay)


def _prodigy(groups: ParameterGroups, c: OptimizerConfig) -> torch.optim.Optimizer:
    prodigy = _import("prodigyopt", "prodigyopt", c.name)
    return prodigy.Prodigy(
        groups, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, use_bias_correction=True
    )


def _schedule_free(groups: ParameterGroups, c: OptimizerConfig) -> torch.optim.Optimizer:
    schedulefree = _import("schedulefree", "schedulefree", c.name)
    return schedulefree.AdamWScheduleFree(groups, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay)


def _prodigy_plus(groups: ParameterGroups, c: OptimizerConfig) -> torch.optim.Optimizer:
    module = _import(*_PACKAGES[c.name], c.name)
    # Its stochastic rounding draws from torch's own generator, and our weights are fp32.
    return module.ProdigyPlusScheduleFree(groups, weight_decay=c.weight_decay, stochastic_rounding=False)


def _collected(name: str) -> Callable[[ParameterGroups, OptimizerConfig], torch.optim.Optimizer]:
    """An optimizer of pytorch_optimizer with its own betas and AdamW's kind of weight decay."""

    def make(groups: ParameterGroups, c: OptimizerConfig) -> torch.optim.Optimizer:
        module = _import(*_PACKAGES[c.name], c.name)
        return getattr(module, name)(groups, weight_decay=c.weight_decay, weight_decouple=True)

    return make


_MAKERS: dict[str, Callable[[ParameterGroups, OptimizerConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "lion": _lion,
    "prodigy": _prodigy,
    "schedule_free_adamw": _schedule_free,
    "lion8bit": _lion,
    "muon": MuonAndAdamW,
    "came": _collected("CAME"),
    "ademamix": _collected("AdEMAMix"),
    "adan": _collected("Adan"),
    "adopt": _collected("ADOPT"),
    "stable_adamw": _collected("StableAdamW"),
    "prodigy_plus": _prodigy_plus,
}

_PACKAGES: dict[str, tuple[str, str]] = {
    "adamw8bit": ("bitsandbytes", "bitsandbytes"),
    "lion": ("lion_pytorch", "lion-pytorch"),
    "prodigy": ("prodigyopt", "prodigyopt"),
    "schedule_free_adamw": ("schedulefree", "schedulefree"),
    "lion8bit": ("bitsandbytes", "bitsandbytes"),
    "prodigy_plus": ("prodigyplus.prodigy_plus_schedulefree", "prodigy-plus-schedule-free"),
    **dict.fromkeys(
        ("came", "ademamix", "adan", "adopt", "stable_adamw"), ("pytorch_optimizer", "pytorch_optimizer")
    ),
}
"""(module, name for pip) of what is not torch's."""
SCHEDULE_FREE = ("schedule_free_adamw", "prodigy_plus")
"""These average their iterates instead of lowering the rate."""


def check_optimizer(config: OptimizerConfig) -> None:
    """Raises ConfigError when the optimizer is not installed or cannot work with these settings.

    Called before anything is loaded.
    """
    if config.name in _PACKAGES:
        _import(*_PACKAGES[config.name], config.name)
    if config.name == "muon":
        check_muon()
    if config.name in RATE_FOUND and config.learning_rate < 0.1:
        raise ConfigError(
            f"{config.name} finds the learning rate itself and multiplies it by learning_rate, which is"
            f" {config.learning_rate:g}; set learning_rate to 1"
        )
    if config.name == "adafactor" and 0 < config.learning_rate < 1e-3:
        raise ConfigError(
            f"adafactor's steps are relative to the size of the weights, so a learning_rate of"
            f" {config.learning_rate:g} would learn next to nothing; set learning_rate to 0.01"
        )


def make_optimizer(groups: ParameterGroups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """`groups`: dicts of params and lr, as torch's optimizers take them."""
    return _MAKERS[config.name](groups, config)


def make_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int) -> LambdaLR:
    """Linear warm-up, then the named diffusers schedule down to the last step."""
    constant = config.schedule == "constant" or config.name in SCHEDULE_FREE
    return get_scheduler(
        # diffusers' "constant" has no warm-up.
        "constant_with_warmup" if constant else config.schedule,
        optimizer,
        num_warmup_steps=config.warmup_for(steps),
        num_training_steps=steps,
        num_cycles=config.cycles,
        power=config.power,
    )
