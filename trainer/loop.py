"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .data.batches import MicroBatch
from .errors import TrainingError
from .objective import Objective, backward_batch
from .processes import ALONE, Processes
from .rng import stream
from .updater import Updater

if TYPE_CHECKING:
    from .leg import Leg

MAX_SKIPPED = 3
"""Steps in a row with a NaN or infinite loss after which a run stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One optimizer step. `loss` is the mean over the step's samples."""

    loss: float
    grad_norm: float
    lr: float
    seconds: float
    skipped: bool
    """The loss or the gradient was not finite, so the weights were left alone."""


@dataclass
class TrainState:
    """What a run has reached. Readable also after the loop was left by an exception."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0
    whole: bool = True
    """False while the weights are between two steps; after an error in there they fit no step."""

    def reset(self) -> None:
        """To the beginning of a run."""
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.losses, self.whole = [], True

    def advance(self, result: StepResult) -> None:
        self.step += 1
        self.losses.append(result.loss)
        self.skipped += result.skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0
        self.whole = True


def train(leg: Leg, until: int) -> None:
    """Train the leg's adapters from the step that its state has reached up to step `until`."""
    with closing(leg.batches()) as batches:
        _train(leg, batches, until)


def _train(leg: Leg, batches: Iterator[MicroBatch], until: int) -> None:
    state, config = leg.state, leg.config
    leg.evaluate()
    while state.step < until and not leg.ended():
        result = train_step(
            leg.objective,
            leg.updater,
            batches,
            state,
            seed=config.seed,
            accumulation=config.optimizer.accumulation,
            check_interrupt=leg.check_interrupt,
            processes=leg.processes,
        )
        state.advance(result)
        leg.log(result)
        if state.skipped_in_a_row == MAX_SKIPPED:
            raise TrainingError(
                f"the loss was not a number in {MAX_SKIPPED} steps in a row (steps {state.step - 2} to"
                f" {state.step}); lower learning_rate ({config.optimizer.learning_rate:g}) or use fp32"
            )
        if config.save.due(state.step) and state.step < until:
            leg.save()
        leg.evaluate()


def train_step(
    objective: Objective,
    updater: Updater,
    batches: Iterator[MicroBatch],
    state: TrainState,
    *,
    seed: int,
    accumulation: int,
    check_interrupt: Callable[[], None],
    processes: Processes = ALONE,
) -> StepResult:
    """Gradients of `accumulation` batches, and one update of the weights.

    check_interrupt: called before each pass through the network; what it raises leaves the step. processes:
    between which the batches are split.
    """
    started = time.perf_counter()
    total = torch.zeros(())
    noise = stream(seed, "noise", state.step)
    with objective.adapter.dropout_draws(seed, state.step, processes.rank):
        for _ in range(accumulation):
            batch = next(batches)
            loss = backward_batch(
                objective, batch, noise, scale=updater.scaled, check_interrupt=check_interrupt
            )
            total = total.to(loss.device) + loss / accumulation
    total = processes.summed(total, updater.parameters)
    lr = updater.lr
    state.whole = False
    loss_value, norm, done = updater.step(total)
    return StepResult(
        loss=loss_value, grad_norm=norm, lr=lr, seconds=time.perf_counter() - started, skipped=not done
    )
