"""One training run from cached samples to a LoRA file.

A run is made of legs. A leg borrows the model, goes on from the newest checkpoint, trains and saves. Between
two legs the model is given back, so that ComfyUI's own sampler can draw previews with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .adapters.lora_file import read_lora, write_lora
from .adapters.metadata import training_metadata
from .adapters.start import StartingLora
from .config import TrainConfig
from .data.cache import TrainingData
from .errors import StorageError
from .events import CheckpointSaved, Emit, Event, Notice, Phase, RunStarted
from .files import copy_as_new
from .loss import check_weighting
from .memory import out_of_memory_advice
from .optim import check_optimizer
from .ports import Lend, Loan, Sampler
from .previews import Previews
from .run import TrainState, train
from .run_folder import Finished, RunFolder
from .state import Checkpoint, commit, forget, lora_path, newest, prune, step_reached
from .step import Objective
from .tensorboard import Board
from .trained import FileNames, Trained, trainable
from .updater import Updater
from .validation import Validation, held_out_loss


@dataclass(frozen=True, kw_only=True)
class Result:
    lora: dict[str, Tensor]
    """The file's tensors, on the CPU."""
    path: Path
    losses: list[float]
    run: Path
    loss_curve: Path
    previews: Path | None = None
    """The overview of all preview pictures."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where results go, and what the files say about the model."""

    loras: Path
    runs: Path
    base_model: str
    file_names: FileNames
    text_file_names: FileNames | None = None
    base_hash: str = ""
    key: str = ""
    """`run_folder.run_key` of the run."""
    trigger: str = ""


def train_lora(
    lend: Lend,
    data: TrainingData,
    config: TrainConfig,
    destination: Destination,
    *,
    emit: Emit,
    check_interrupt: Callable[[], None],
    stop_requested: Callable[[], bool] = lambda: False,
    start: StartingLora | None = None,
    folder: RunFolder | None = None,
    sampler: Sampler | None = None,
) -> Result:
    """Train, save `<loras>/<name>.safetensors` and keep the run's record below `runs`.

    start: an existing LoRA to go on from. folder: a run that was stopped, to go on with. sampler: draws the
    previews. When a leg is left by an exception or an interrupt, a checkpoint is written first; a requested
    stop ends the run in order, with what there is.
    """
    check_optimizer(config.optimizer)
    session = _Session(
        lend=lend,
        data=data,
        config=config,
        destination=destination,
        show=emit,
        check_interrupt=check_interrupt,
        stop_requested=stop_requested,
        start=start,
        folder=folder or RunFolder.create(destination.runs, config, destination.key),
        sampler=sampler,
    )
    return session.run(resumed=folder is not None)


@dataclass(kw_only=True)
class _Session:
    lend: Lend
    data: TrainingData
    config: TrainConfig
    destination: Destination
    show: Emit
    check_interrupt: Callable[[], None]
    stop_requested: Callable[[], bool]
    start: StartingLora | None
    folder: RunFolder
    sampler: Sampler | None

    def run(self, *, resumed: bool) -> Result:
        self.state = TrainState()
        checkpoint = self._go_on() if resumed else None
        self.board = Board(self.folder.path, self.state.step, self.show)
        previews = Previews(self.config.preview, self.sampler, self.folder, self.steps, self.emit)
        try:
            previews.draw(self.state.step, self._lora_file, self.stop_requested)
            while checkpoint is None or (self.state.step < self.steps and not self._ended()):
                checkpoint = self._leg(checkpoint, until=previews.next_step(self.state.step))
                previews.draw(self.state.step, self._lora_file, self.stop_requested)
        finally:
            self.board.close()
        return self._finish(previews)

    @cached_property
    def steps(self) -> int:
        return self.config.total_steps(sum(s.repeats for s in self.data.samples))

    @cached_property
    def validation(self) -> Validation:
        return Validation(self.config.validation, self.folder.validations(), self.steps)

    @property
    def _lora_file(self) -> Path:
        return lora_path(self.folder.checkpoints, self.state.step)

    def _ended(self) -> bool:
        return self.stop_requested() or self.validation.exhausted

    def emit(self, event: Event) -> None:
        """To the run's own log, to TensorBoard, and on."""
        if not isinstance(event, Phase):
            self.folder.log(event)
            self.board.add(event)
        self.show(event)

    def _go_on(self) -> Checkpoint | None:
        """The newest whole checkpoint of the run; `state` is set to its step."""
        folder = self.folder
        folder.clear_unfinished()
        checkpoint, damaged = newest(folder.checkpoints)
        for name in damaged:
            self.show(Notice(message=f"{name} of the last run is damaged and was left out"))
            forget(folder.checkpoints, name)
        folder.rewind(checkpoint.step if checkpoint else 0)
        folder.write_config(self.config)
        if checkpoint is not None:
            self.state.step, self.state.losses = checkpoint.step, folder.losses()
        self.show(Notice(message=f"going on from step {self.state.step} of {folder.path.name}"))
        return checkpoint

    def _leg(self, checkpoint: Checkpoint | None, until: int) -> Checkpoint:
        """Train up to step `until` on one loan of the models; ends with a checkpoint."""
        state, config, validation = self.state, self.config, self.validation
        saved = checkpoint

        with self.lend() as loan, ExitStack() as stack:
            check_weighting(config.objective, loan.denoiser.process)
            destination = self.destination
            trained, objective = trainable(
                stack, loan, config, destination.file_names, destination.text_file_names, self.start
            )
            updater = Updater(
                trained.groups, config, self.steps, fp16=loan.denoiser.half_precision == torch.float16
            )
            if checkpoint is None:
                self._announce(objective, updater)
            else:
                tensors = checkpoint.tensors()
                trained.load_state_dict(tensors)
                updater.load_state_dict(tensors, checkpoint.numbers)
                del tensors

            def write_lora_file() -> None:
                write_lora(trained.file_tensors(), self._lora_file, self._metadata(loan))

            def save() -> None:
                nonlocal saved
                with updater.weights_to_save():
                    write_lora_file()
                saved = self._commit(trained, updater)
                self.emit(CheckpointSaved(step=state.step, path=self._lora_file))

            def evaluate() -> bool:
                if validation.due(state.step):
                    with updater.weights_to_save():
                        loss = held_out_loss(
                            objective, self.data.validation_samples, config.seed, config.data.batch_size
                        )
                        measured = validation.add(state.step, loss)
                        # A checkpoint's file stays as it is: its digest was taken.
                        checkpointed = saved is not None and saved.step == state.step
                        if measured.best and config.validation.keep_best and not checkpointed:
                            write_lora_file()
                    self.emit(measured)
                return self._ended()

            try:
                with _explained_out_of_memory(config):
                    train(
                        objective,
                        updater,
                        self.data.samples,
                        self.data.class_samples,
                        config,
                        steps=self.steps,
                        until=until,
                        emit=self.emit,
                        check_interrupt=self.check_interrupt,
                        state=state,
                        save=save,
                        evaluate=evaluate,
                    )
            except BaseException as error:  # a stop is one; it goes on when the work is safe
                reached = saved.step if saved else 0
                if state.whole and state.step > reached and not isinstance(error, StorageError):
                    self._rescue(save)
                raise
            if saved is None or saved.step != state.step:
                save()
        assert saved is not None
        return saved

    def _rescue(self, save: Callable[[], None]) -> None:
        """Save before an error goes on. That this fails too must not take the first error's place."""
        step = self.state.step
        try:
            save()
            self._draw_curve()
        except Exception as error:  # noqa: BLE001 - whatever it is, the first error is the one to tell
            reached = step_reached(self.folder.checkpoints)
            if reached < step:
                message = f"step {step} could not be saved ({error}); the newest state is of step {reached}"
                self.show(Notice(message=message))

    def _commit(self, trained: Trained, updater: Updater) -> Checkpoint:
        tensors, numbers = updater.state_dict()
        folder = self.folder.checkpoints
        checkpoint = commit(folder, self.state.step, {**trained.state_dict(), **tensors}, numbers)
        prune(folder, self.config.save.keep)
        return checkpoint

    def _announce(self, objective: Objective, updater: Updater) -> None:
        self.emit(
            RunStarted(
                steps=self.steps,
                samples=len(self.data.samples),
                layers=len(objective.adapter.layers),
                parameters=sum(p.numel() for p in updater.parameters),
            )
        )

    def _finish(self, previews: Previews) -> Result:
        """Copy the chosen checkpoint's LoRA to its place and say so in the run's record."""
        config, state, folder = self.config, self.state, self.folder
        source = self._lora_file
        best = self.validation.best_step if config.validation.keep_best else None
        if best is not None and best != state.step and lora_path(folder.checkpoints, best).exists():
            source = lora_path(folder.checkpoints, best)
            self.emit(Notice(message=f"kept the LoRA of step {best}, which has the lowest held-out loss"))
        early = self.validation.exhausted and state.step < self.steps

        self._draw_curve()  # before the record says that the run is finished

        def before(path: Path) -> None:
            if state.step == self.steps or early:
                folder.finish(Finished.of(config, self.steps, reached=state.step, lora=path, source=source))

        path = copy_as_new(source, self.destination.loras, config.name, before)
        if early:
            self.emit(
                Notice(
                    message=f"stopped early at step {state.step}: {config.validation.patience} measurements"
                    " without a lower held-out loss"
                )
            )
        elif state.step < self.steps:
            self.emit(Notice(message=f"stopped at step {state.step}; run again to go on from there"))
        return Result(
            lora=read_lora(path)[0],
            path=path,
            losses=state.losses,
            run=folder.path,
            loss_curve=folder.loss_curve,
            previews=previews.overview(),
        )

    def _draw_curve(self) -> None:
        self.folder.write_loss_curve(self.state.losses)

    def _metadata(self, loan: Loan) -> dict[str, str]:
        config, destination = self.config, self.destination
        prediction = loan.denoiser.process.prediction
        return training_metadata(
            config.to_dict(),
            base_model=destination.base_model,
            steps=self.state.step,
            alpha=config.adapter.scale_alpha,
            rank=config.adapter.rank,
            dataset_digest=config.data.digest,
            base_hash=destination.base_hash,
            trigger=destination.trigger,
            tags=[s.caption for s in self.data.samples],
            prediction={"eps": "epsilon"}.get(prediction, prediction),
        )


@contextmanager
def _explained_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Out of memory keeps its type, by which ComfyUI knows it, and gets the next lever to pull."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"{out_of_memory_advice(config)} ({error})") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU allocator's words
            raise
        raise torch.OutOfMemoryError(f"{out_of_memory_advice(config)} ({error})") from error
