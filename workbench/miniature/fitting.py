"""A training loop with a budget of time instead of steps: the learning rate ends at zero when the time is up.

It can be killed and started again at any moment; it loses at most `SAVE_EVERY` seconds.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SAVE_EVERY = 60.0
LONGEST_STEP = 5.0
"""A step that took longer was suspended; the rest of its time is not counted as training."""

LossOf = Callable[[torch.Generator], Tensor]


def fit(
    module: nn.Module,
    loss_of: LossOf,
    optimizers: Sequence[Optimizer],
    *,
    folder: Path,
    name: str,
    minutes: float,
    warmup: float = 0.02,
    decay_from: float = 0.0,
    average: float = 0.999,
    log_every: int = 50,
) -> nn.Module:
    """Trains `module` in place and returns the moving average of its weights.

    `loss_of` draws a batch with the generator that it is given. The rate rises over the share `warmup` of the
    time, stays, and falls as a cosine from the share `decay_from` on. Lines {step, seconds, loss, rate} go to
    `folder/name.jsonl`; `folder/name.pt` keeps what is needed to go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_path, log_path = folder / f"{name}.pt", folder / f"{name}.jsonl"
    averaged = copy.deepcopy(module)
    rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
    step, seconds = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        module.load_state_dict(state["module"])
        averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
        _forget_lines_after(step, log_path)
    weights: list[Tensor] = list(module.parameters())
    means: list[Tensor] = list(averaged.parameters())
    saved_at, total, counted = seconds, torch.zeros(()), 0

    while (done := seconds / (60 * minutes)) < 1:
        started = time.monotonic()
        share = _rate(done, warmup, decay_from)
        for optimizer, initial in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, initial, strict=True):
                group["lr"] = rate * share
        loss = loss_of(torch.Generator().manual_seed(step))
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        with torch.no_grad():
            keep = min(average, step / (step + 10))
            torch._foreach_lerp_(means, weights, 1 - keep)
            total += loss.detach()
            counted += 1
        seconds += min(time.monotonic() - started, LONGEST_STEP)
        if step % log_every == 0:
            line = {"step": step, "seconds": round(seconds), "loss": round(total.item() / counted, 5)}
            with log_path.open("a", encoding="utf-8") as log:
                log.write(json.dumps({**line, "rate": round(share, 4)}) + "\n")
            total, counted = torch.zeros(()), 0
        if seconds - saved_at > SAVE_EVERY:
            save_state(state_path, module, averaged, optimizers, step, seconds)
            saved_at = seconds
    save_state(state_path, module, averaged, optimizers, step, seconds)
    return averaged


def save_state(
    path: Path,
    module: nn.Module,
    averaged: nn.Module,
    optimizers: Sequence[Optimizer],
    step: int,
    seconds: float,
) -> None:
    """Writes what `fit` goes on from."""
    state = {
        "module": module.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "step": step,
        "seconds": seconds,
    }
    write_whole(path, lambda part: torch.save(state, part))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """`write` gets a temporary path: a file that is there is taken for a stage that is done."""
    part = path.with_suffix(".part")
    write(part)
    os.replace(part, path)


def _forget_lines_after(step: int, log: Path) -> None:
    """What came after the state was saved will be done, and written, again."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        log.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _rate(done: float, warmup: float, decay_from: float) -> float:
    if done < warmup:
        return done / warmup + 0.01
    past = max(0.0, done - decay_from) / (1 - decay_from)
    return 0.5 + 0.5 * math.cos(math.pi * past)
