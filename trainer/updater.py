"""From gradients to weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from .config import TrainConfig
from .optim import ParameterGroups, make_optimizer, make_schedule


class Updater:
    """Everything that turns gradients into weights: optimizer, schedule, clipping, scaling, average."""

    def __init__(self, groups: ParameterGroups, config: TrainConfig, steps: int, *, fp16: bool) -> None:
        self.parameters: list[nn.Parameter] = [p for g in groups for p in g["params"]]
        self.optimizer = make_optimizer(groups, config.optimizer)
        self.schedule = make_schedule(self.optimizer, config.optimizer, steps)
        self.max_norm = config.optimizer.max_grad_norm or math.inf
        self.accumulation = config.optimizer.accumulation
        self.scaler = GradScaler(self.parameters[0].device.type, enabled=fp16)
        decay = config.optimizer.ema_decay
        self.ema = EMAModel(self.parameters, decay=decay) if decay else None
        self.save_ema = config.optimizer.save_ema
        self._set_mode("train")

    def _set_mode(self, mode: str) -> None:
        # Schedule-free optimizers keep two sets of weights in one place.
        if hasattr(self.optimizer, mode):
            getattr(self.optimizer, mode)()

    @contextmanager
    def weights_to_save(self) -> Iterator[None]:
        """Within the block the adapter holds the weights that a file should have: averaged, if asked for."""
        own = [p.detach().clone() for p in self.parameters]
        self._set_mode("eval")
        average = self.ema if self.save_ema else None
        if average is not None:
            average.copy_to(self.parameters)
        try:
            yield
        finally:
            self._set_mode("train")
            with torch.no_grad():  # schedule-free's way back rounds; a save must not change the run
                for p, value in zip(self.parameters, own, strict=True):
                    p.copy_(value)

    @property
    def lr(self) -> float:
        """Of the next step, of the first group."""
        return float(self.schedule.get_last_lr()[0])

    def scaled(self, loss: Tensor) -> Tensor:
        """What the backward pass starts from: the loss of one of the batches of a step."""
        return self.scaler.scale(loss / self.accumulation)

    def step(self, loss: Tensor) -> tuple[float, float, bool]:
        """Update the weights. Returns loss, gradient norm and whether the step was done.

        A NaN or infinite loss leaves the weights as they are; so do infinite gradients, unless the
        GradScaler is on, for which they are a normal way to find its scale.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        # The one synchronisation of a step.
        loss_value, norm_value = torch.stack([loss.float(), norm.float()]).tolist()
        fine = math.isfinite(loss_value) and (math.isfinite(norm_value) or self.scaler.is_enabled())
        if fine:
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scaler.get_scale() >= scale:  # lower: its step was one of finding the scale
                self.schedule.step()
                if self.ema is not None:
                    self.ema.step(self.parameters)
        else:
            self.scaler.update()
        self.optimizer.zero_grad()
        return loss_value, norm_value, fine

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, everything else, fit for JSON): enough to go on bit for bit."""
        tensors: dict[str, Tensor] = {}
        optimizer = self.optimizer.state_dict()
        numbers: dict[str, dict[str, Any]] = {}
        for index, values in optimizer["state"].items():
            for name, value in _flat(values):
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value.detach().to("cpu", copy=True)
                else:
                    numbers.setdefault(str(index), {})[name] = value
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer["param_groups"]]
        for i, group in enumerate(groups):
            for name in [k for k, v in group.items() if isinstance(v, Tensor)]:
                tensors[f"group.{i}.{name}"] = group.pop(name).detach().to("cpu", copy=True)
        rest: dict[str, Any] = {
            "groups": groups,
            "numbers": numbers,
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "scaler": self.scaler.state_dict(),
        }
        if self.ema is not None:
            average = self.ema.state_dict()
            for i, tensor in enumerate(average.pop("shadow_params")):
                tensors[f"ema.{i}"] = tensor.detach().to("cpu", copy=True)
            rest["ema"] = average
        return tensors, rest

    def _keep_dtypes(self, saved: Mapping[int, Mapping[str, Any]]) -> None:
        """torch gives loaded state the dtype of its parameter; some optimizers hold it in bf16."""
        for i, p in enumerate(p for g in self.optimizer.param_groups for p in g["params"]):
            loaded = self.optimizer.state.get(p, {})
            for name, value in saved.get(i, {}).items():
                if isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
                    loaded[name] = value.to(loaded[name].device)

    def load_state_dict(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, for an updater that was made with the same settings."""
        fresh = self.optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {
            int(i): {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            for i, values in rest["numbers"].items()
        }
        of_groups: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, index, *name = key.split(".", 2)
            if kind == "optimizer":
                *outer, inner = name[0].split(".")
                place = state.setdefault(int(index), {})
                for key in outer:
                    place = place.setdefault(key, {})
                place[inner] = tensor
            elif kind == "group":
                device = self.parameters[0].device
                of_groups.setdefault(int(index), {})[name[0]] = tensor.to(device)
        groups = []
        for i, (own, saved) in enumerate(zip(fresh["param_groups"], rest["groups"], strict=True)):
            as_before = {k: tuple(v) if isinstance(own.get(k), tuple) else v for k, v in saved.items()}
            groups.append({**as_before, **of_groups.get(i, {}), "params": own["params"]})
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._keep_dtypes(state)
        # The length of the run may have changed, and with it the schedule's shape: keep the new shape.
        self.schedule.load_state_dict({**self.schedule.state_dict(), **rest["schedule"]})
        self.scaler.load_state_dict(dict(rest["scaler"]))
        if self.ema is not None:
            shadow = [tensors[f"ema.{i}"] for i in range(len(self.parameters))]
            self.ema.load_state_dict({**rest["ema"], "shadow_params": shadow})
            self.ema.to(self.parameters[0].device)


def _flat(values: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    """bitsandbytes keeps a dict of quantised state within that of a parameter: `outer.inner`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{outer}{name}.")
        else:
            yield outer + name, value
