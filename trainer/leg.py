"""One loan of the models within a run: adapters in, trained, saved, taken out."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load

from .adapters.lora_file import write_lora
from .adapters.metadata import of_embedding, training_metadata
from .config import AS_LOADED
from .data.batches import MicroBatch, micro_batches, shares
from .data.prefetch import prefetched
from .errors import StorageError
from .events import CheckpointSaved, Notice, Phase, RunStarted, StepDone
from .loop import StepResult
from .memory.advice import explained_out_of_memory
from .objective import Objective
from .ports import Loan
from .runs.checkpoints import Checkpoint, commit, prune, step_reached, thin
from .runs.validation import held_out_loss
from .timeline import HELD_OUT
from .trained import Trained, prepared
from .updater import Updater

if TYPE_CHECKING:
    from .session import Session


class Leg:
    """What the loop works on."""

    def __init__(
        self,
        session: Session,
        loan: Loan,
        trained: Trained,
        objective: Objective,
        updater: Updater,
        saved: Checkpoint | None,
    ) -> None:
        self.session, self.loan = session, loan
        self.trained, self.objective, self.updater = trained, objective, updater
        self.config, self.state = session.config, session.state
        self.check_interrupt, self.ended = session.check_interrupt, session.ended
        self.processes = session.processes
        self.saved = saved
        """The newest checkpoint of the run."""

    @classmethod
    @contextmanager
    def begun(cls, session: Session, checkpoint: Checkpoint | None) -> Iterator[Leg]:
        """Borrow the models and go on from the checkpoint; a leg that ends in order ends with one.

        When the block is left by an exception or an interrupt, a checkpoint is written first.
        """
        config, destination = session.config, session.destination
        names = (destination.file_names, destination.text_file_names)
        with (
            session.lend(config.memory) as loan,
            prepared(loan, config, *names, session.start, session.own_loss) as (trained, objective),
        ):
            fp16 = loan.denoiser.half_precision == torch.float16
            updater = Updater(trained.groups, config, session.steps, fp16=fp16)
            leg = cls(session, loan, trained, objective, updater, checkpoint)
            if checkpoint is None:
                leg.announce()
            else:
                leg.restore(checkpoint)
            leg.processes.spread(updater.parameters)
            try:
                with explained_out_of_memory(config):
                    yield leg
            except BaseException as error:  # a stop is one; it goes on when the work is safe
                leg.rescue(error)
                raise
            if leg.saved is None or leg.saved.step != session.state.step:
                leg.save()

    def announce(self) -> None:
        self.session.emit(
            RunStarted(
                steps=self.session.steps,
                samples=len(self.session.data.samples),
                layers=len(self.objective.adapter.layers),
                parameters=sum(p.numel() for p in self.updater.parameters),
            )
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        tensors = load(self.processes.from_main(lambda: checkpoint.state.read_bytes()))
        numbers = self.processes.told(lambda: checkpoint.numbers)
        self.trained.load_state_dict(tensors)
        self.updater.load_state_dict(tensors, numbers)

    def batches(self) -> Generator[MicroBatch]:
        """For ever, from the first one of the next step; to be closed."""
        data, config, processes = self.session.data, self.config, self.processes
        accumulation = config.optimizer.accumulation
        start = self.state.step * accumulation
        order = micro_batches(data.samples, data.class_samples, config.data.batch_size, config.seed, start)
        order = shares(order, accumulation, processes.rank, processes.size)
        return prefetched(order, self.check_interrupt)

    def evaluate(self) -> None:
        """Measure the held-out loss when it is due, and keep the LoRA of a step that is the best so far."""
        session, state, validation = self.session, self.state, self.session.validation
        if not validation.due(state.step):
            return
        session.show(Phase(name=HELD_OUT, done=0, total=1))
        with self.updater.weights_to_save():
            loss = held_out_loss(
                self.objective,
                session.data.validation_samples,
                self.config.seed,
                self.config.data.batch_size,
            )
            measured = validation.add(state.step, loss)
            # A checkpoint's file stays as it is: its digest was taken.
            checkpointed = self.saved is not None and self.saved.step == state.step
            keeps = self.config.validation.keep_best and session.best is validation
            if measured.best and keeps and not checkpointed:
                self._write_lora()
        session.emit(measured)

    def log(self, result: StepResult) -> None:
        self.session.emit(
            StepDone(
                step=self.state.step,
                steps=self.session.steps,
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=result.lr,
                seconds=result.seconds,
                skipped=result.skipped,
            )
        )

    def save(self) -> None:
        """A checkpoint of the step that is reached."""
        self.processes.spread(self.updater.parameters)
        if self.processes.main:
            self._save()
        else:
            self.saved = Checkpoint.elsewhere(self.state.step)

    def _save(self) -> None:
        with self.updater.weights_to_save():
            self._write_lora()
        tensors, numbers = self.updater.state_dict()
        folder = self.session.folder.checkpoints
        state = {**self.trained.state_dict(), **tensors}
        self.saved = commit(folder, self.state.step, state, numbers)
        prune(folder, self.config.save.keep)
        thin(folder, self.config.save, self.session.best.best_step)
        self.session.emit(CheckpointSaved(step=self.state.step, path=self.saved.lora))

    def rescue(self, error: BaseException) -> None:
        """Save before an error goes on. That this fails too must not take the first error's place."""
        step = self.state.step
        reached = self.saved.step if self.saved else 0
        if not self.state.whole or step <= reached or isinstance(error, StorageError):
            return
        if not self.processes.main:
            return
        try:
            self._save()
            self.session.draw_curve()
        except Exception as failure:  # noqa: BLE001 - whatever it is, the first error is the one to tell
            reached = step_reached(self.session.folder.checkpoints)
            if reached < step:
                message = f"step {step} could not be saved ({failure}); the newest state is of step {reached}"
                self.session.show(Notice(message=message))

    def _write_lora(self) -> None:
        write_lora(self.trained.file_tensors(), self.session.lora_file, self._metadata())

    def _metadata(self) -> dict[str, str]:
        config, destination = self.config, self.session.destination
        prediction, held = self.loan.denoiser.process.prediction, self.loan.denoiser.base_precision
        entries = training_metadata(
            config.to_dict(),
            base_model=destination.base_model,
            steps=self.state.step,
            alpha=config.adapter.scale_alpha,
            rank=config.adapter.rank,
            kinds=[adapter.config.kind for adapter, _ in self.trained.adapters],
            dataset_digest=destination.dataset,
            base_hash=destination.base_hash,
            trigger=config.embedding.placeholder or destination.trigger,
            tags=[s.caption for s in self.session.data.samples],
            base_precision="" if held == AS_LOADED else held,
            prediction={"eps": "epsilon"}.get(prediction, prediction),
        )
        return entries if config.trains_lora else of_embedding(entries, config.embedding.placeholder)
