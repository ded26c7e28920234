"""The training loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import TrainConfig
from .data.batches import CachedSample, batches
from .errors import TrainingError
from .events import Emit, StepDone
from .rng import stream
from .step import Objective, backward_batch
from .updater import Updater

MAX_SKIPPED = 3
"""Steps in a row with a NaN or infinite loss after which a run stops."""


@dataclass
class TrainState:
    """What a run has reached. Readable also after the loop was left by an exception."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0
    whole: bool = True
    """False while the weights are between two steps; after an error in there they fit no step."""


def train(
    objective: Objective,
    updater: Updater,
    samples: Sequence[CachedSample],
    class_samples: Sequence[CachedSample],
    config: TrainConfig,
    *,
    steps: int,
    until: int,
    emit: Emit,
    check_interrupt: Callable[[], None],
    state: TrainState,
    save: Callable[[], None] = lambda: None,
    evaluate: Callable[[], bool] = lambda: False,
) -> None:
    """Train the adapter from `state.step` up to step `until` of the run's `steps`, with `state` up to date.

    `check_interrupt` is called before each pass through the network; what it raises leaves the loop. `save`
    is called every `config.save.every` steps. `evaluate` is called before the first step and after each one;
    True ends the loop.
    """
    size, accumulation = config.data.batch_size, config.optimizer.accumulation
    start = state.step * accumulation
    shown = batches(samples, size, config.seed, start)
    kept: Iterator[list[CachedSample]] = itertools.repeat([])
    if class_samples:
        kept = batches(class_samples, min(size, len(class_samples)), config.seed + 1, start)

    def scaled(loss: Tensor) -> Tensor:
        return updater.scaler.scale(loss / accumulation)

    started = time.perf_counter()
    ended = evaluate()
    while state.step < until and not ended:
        total = torch.zeros(())
        generator = stream(config.seed, "noise", state.step)
        with objective.adapter.dropout_draws(config.seed, state.step):
            for _ in range(accumulation):
                loss = backward_batch(
                    objective,
                    next(shown),
                    next(kept),
                    generator,
                    scale=scaled,
                    check_interrupt=check_interrupt,
                )
                total = total.to(loss.device) + loss / accumulation
        lr = float(updater.schedule.get_last_lr()[0])
        state.whole = False
        loss_value, norm, done = updater.step(total)
        state.step += 1
        state.losses.append(loss_value)
        state.whole = True
        state.skipped += not done
        state.skipped_in_a_row = 0 if done else state.skipped_in_a_row + 1
        now = time.perf_counter()
        emit(
            StepDone(
                step=state.step,
                steps=steps,
                loss=loss_value,
                grad_norm=norm,
                lr=lr,
                seconds=now - started,
                skipped=not done,
            )
        )
        if state.skipped_in_a_row == MAX_SKIPPED:
            raise TrainingError(
                f"the loss was not a number in {MAX_SKIPPED} steps in a row (steps {state.step - 2} to"
                f" {state.step}); lower learning_rate ({config.optimizer.learning_rate:g}) or use fp32"
            )
        if config.save.every and state.step % config.save.every == 0 < until - state.step:
            save()
        ended = evaluate()
        started = time.perf_counter()
