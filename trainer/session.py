"""One training run from cached samples to a LoRA file.

A run is made of legs. A leg borrows the model, goes on from the newest checkpoint, trains and saves. Between
two legs the model is given back, so that ComfyUI's own sampler can draw previews with it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .adapters.lora_file import read_lora
from .adapters.start import StartingLora
from .config import BY_JUDGE, TrainConfig, ValidationConfig
from .data.cache import TrainingData
from .data.stored import SampleLost
from .errors import LoraFileError, StorageError, shortened
from .events import Emit, Event, Notice, Phase, RunOpened
from .files import clear_unfinished
from .leg import Leg
from .loop import TrainState, train
from .memory.fallback import Fallback, give_back
from .memory.report import Plan, levers
from .own_loss import LossFunction
from .ports import Lend, Sampler
from .processes import ALONE, Processes
from .runs import steps as step_names
from .runs.checkpoints import Checkpoint, forget, lora_path, newest, strangers
from .runs.folder import RunFolder
from .runs.in_use import in_use, is_in_use
from .runs.judged import JudgedSteps, Judging
from .runs.placing import Places
from .runs.previews import Previews
from .runs.record import Finished, Record
from .runs.result import Result, shared_result
from .runs.tensorboard import Board
from .runs.validation import Validation
from .trained import FileNames

MOST_LOST = 3
"""Times that samples of one step are encoded again before the run gives up."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where results go, and what the files say about the model and the pictures."""

    places: Places
    runs: Path
    base_model: str
    file_names: FileNames
    text_file_names: FileNames | None = None
    base_hash: str = ""
    dataset: str = ""
    """`Dataset.digest`."""
    key: str = ""
    """`runs.finding.run_key` of the run."""
    trigger: str = ""


def train_lora(
    lend: Lend,
    data: TrainingData,
    config: TrainConfig,
    destination: Destination,
    *,
    steps: int,
    emit: Emit,
    check_interrupt: Callable[[], None],
    stop_requested: Callable[[], bool] = lambda: False,
    start: StartingLora | None = None,
    own_loss: LossFunction | None = None,
    folder: RunFolder | None = None,
    sampler: Sampler | None = None,
    judging: Judging | None = None,
    plan: Plan | None = None,
    processes: Processes = ALONE,
) -> Result:
    """Train, save `<name>.safetensors` in its places and keep the run's record below `runs`.

    `preflight.check` comes before. steps: of the whole run, `config.total_steps`. start: an existing LoRA
    to go on from. own_loss: in place of the config's, which has its name (`with_own_loss`). folder: a run
    that was stopped, to go on with. sampler: draws the previews. judging: looks at them. plan: by which the
    next levers are found with fit auto. When a leg is left by an exception or an interrupt, a checkpoint is
    written first; a requested stop ends the run in order, with what there is. processes: that share the
    run; all but the main one are given no folder, and write nothing.
    """
    resumed = folder is not None
    if folder is not None and is_in_use(folder.path):
        raise StorageError(
            f"run {folder.path.name} is being trained by another process; wait for its end, or choose new run"
        )
    if folder is None and processes.main:
        record = Record(key=destination.key, dataset=destination.dataset)
        folder = RunFolder.create(destination.runs, config, record)
    path = Path(processes.told(lambda: str(folder.path) if folder else ""))
    session = (Session if processes.main else Following)(
        lend=lend,
        data=data,
        config=config,
        destination=destination,
        steps=steps,
        show=emit,
        check_interrupt=check_interrupt,
        stop_requested=stop_requested,
        start=start,
        own_loss=own_loss,
        folder=folder or RunFolder(path),
        sampler=sampler,
        judging=judging,
        plan=plan,
        processes=processes,
    )
    with in_use(path) if processes.main else nullcontext():
        checkpoint = session.begin(resumed=resumed)
        emit(RunOpened(path=path, step=session.state.step, steps=steps))
        return session.run(checkpoint)


class Session:
    """A run while it goes on."""

    def __init__(
        self,
        *,
        lend: Lend,
        data: TrainingData,
        config: TrainConfig,
        destination: Destination,
        steps: int,
        show: Emit,
        check_interrupt: Callable[[], None],
        stop_requested: Callable[[], bool],
        start: StartingLora | None,
        own_loss: LossFunction | None,
        folder: RunFolder,
        sampler: Sampler | None,
        judging: Judging | None,
        plan: Plan | None,
        processes: Processes,
    ) -> None:
        self.lend, self.data, self.config, self.destination = lend, data, config, destination
        self.show, self.check_interrupt, self.stop_requested = show, check_interrupt, stop_requested
        self.start, self.own_loss, self.folder, self.processes = start, own_loss, folder, processes
        self.steps = steps
        self.state = TrainState()
        self._lost_at: list[int] = []
        self.validation = Validation(config.validation, self.steps)
        self.fallback = Fallback(plan.measured if plan else None)
        if plan is not None:
            folder.write_plan(plan)
        self.previews = Previews(config.preview, sampler, folder, self.steps, self.emit)
        self.judged = JudgedSteps(config, judging, self.previews, folder, self.emit, check_interrupt)
        self.board = Board(folder.path, show)

    def begin(self, *, resumed: bool) -> Checkpoint | None:
        """What to go on from, where there is something; said to all processes."""
        checkpoint = self.go_on() if resumed else None
        state = self.state
        self.processes.told(lambda: (checkpoint is not None, state.step, state.losses))
        return checkpoint

    def run(self, checkpoint: Checkpoint | None) -> Result:
        """checkpoint: what to go on from."""
        state = self.state
        if self.processes.main:
            self.board.open(state.step)
        try:
            self._preview()
            while checkpoint is None or (state.step < self.steps and not self.ended()):
                try:
                    checkpoint = self._leg(checkpoint)
                except torch.OutOfMemoryError as error:
                    checkpoint = self._go_on_leaner(error)
                except SampleLost as lost:
                    checkpoint = self._go_on_with(lost)
                else:
                    self._preview()
        finally:
            self.board.close()
        return self._finish()

    def _leg(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """Up to the next preview. Nothing of it but the checkpoint is kept."""
        with Leg.begun(self, checkpoint) as leg:
            train(leg, until=self.previews.next_step(self.state.step))
        return leg.saved

    def go_on(self) -> Checkpoint | None:
        """The newest whole checkpoint of the run; state, measurements and log are set back to its step."""
        folder = self.folder
        clear_unfinished(folder.path)
        checkpoint, damaged = newest(folder.checkpoints)
        for reached in damaged:
            self._tell(f"{step_names.name(reached)} of the last run is damaged and was left out")
            forget(folder.checkpoints, reached)
        if others := strangers(folder.checkpoints):
            self._tell(f"left out in {folder.checkpoints}, not written by a run: {shortened(others)}")
        step = checkpoint.step if checkpoint else 0
        if lines := folder.log.rewind(step):
            self._tell(f"{lines} damaged lines of events.jsonl were left out")
        folder.write_config(self.config)
        self.state.step, self.state.losses = step, folder.log.losses(step)
        for measured in folder.log.validations():
            self.validation.add(measured.step, measured.loss)
        self._tell(f"going on from step {step} of {folder.path.name}")
        return checkpoint

    def _go_on_leaner(self, error: torch.OutOfMemoryError) -> Checkpoint | None:
        """From the last state, with the next levers. Raises the error when there are none."""
        memory = None if self.processes.size > 1 else self.fallback.next(self.config.memory)
        if memory is None:
            raise error
        give_back(error)
        self.config = replace(self.config, memory=memory)
        self._tell(f"out of memory at step {self.state.step + 1}; going on with {levers(memory)}")
        return self._from_last_state()

    def _go_on_with(self, lost: SampleLost) -> Checkpoint | None:
        """From the last state, when what is gone from the cache is encoded again."""
        step = self.state.step + 1
        self._lost_at.append(step)
        if self.processes.size > 1:
            raise StorageError(
                f"what step {step} needs is gone from the cache or was altered; start the same command again,"
                " and it is encoded anew"
            ) from lost
        if self.data.restore is None or self._lost_at.count(step) > MOST_LOST:
            raise StorageError(
                f"the cache loses what step {step} needs as fast as it is encoded; let nothing delete its"
                " files meanwhile, or do without it (docs/cache.md)"
            ) from lost
        self._tell(f"what step {step} needs is gone from the cache or was altered; it is encoded again")
        self.data.restore()
        return self._from_last_state()

    def _from_last_state(self) -> Checkpoint | None:
        self.validation = Validation(self.config.validation, self.steps)
        self.state.reset()
        return self.go_on()

    @property
    def lora_file(self) -> Path:
        """The LoRA of the step that is reached."""
        return lora_path(self.folder.checkpoints, self.state.step)

    def ended(self) -> bool:
        """Whether the run is to end before its last step."""
        return self.processes.any(self.stop_requested() or self.best.exhausted)

    @property
    def best(self) -> Validation | JudgedSteps:
        """What says which step is best."""
        return self.judged if self.config.validation.decides == BY_JUDGE else self.validation

    def emit(self, event: Event) -> None:
        """To the run's own log, to TensorBoard, and on."""
        if not isinstance(event, Phase):
            self.folder.log.add(event)
            self.board.add(event)
        self.show(event)

    def _tell(self, message: str) -> None:
        """Not logged: it is about the log and its neighbours."""
        self.show(Notice(message=message))

    def _best_lora(self) -> Path | None:
        """The LoRA of the best step, if that is wanted and not the last one's."""
        if not self.config.validation.keep_best:
            return None
        best = self.best.best_step
        if best is None and self.best is self.judged:
            self.emit(Notice(message="no step was judged, so the last one was kept"))
        if best is None or best == self.state.step:
            return None
        path = lora_path(self.folder.checkpoints, best)
        try:
            read_lora(path)
        except LoraFileError as error:
            self.emit(Notice(message=f"step {best} is the best, but {error}; kept the last"))
            return None
        self.emit(Notice(message=self.best.kept(best)))
        return path

    def draw_curve(self) -> None:
        self.folder.write_loss_curve(self.state.losses)

    def _preview(self) -> None:
        for step in (0, self.state.step) if self.judged.active else (self.state.step,):
            self.previews.draw(step, self.lora_file, self.stop_requested)
        self.judged.look(self.state.step)

    def _finish(self) -> Result:
        """Copy the chosen checkpoint's LoRA to its place and say so in the run's record."""
        config, state, folder = self.config, self.state, self.folder
        source = self._best_lora() or self.lora_file
        early = self.best.exhausted and state.step < self.steps
        stopped = not early and state.step < self.steps

        self.draw_curve()  # before the record says that the run is finished

        def before(path: Path) -> None:
            if not stopped:
                folder.finish(Finished.of(config, self.steps, reached=state.step, lora=path, source=source))

        places = self.destination.places
        name = places.put(source, config, before)
        if early:
            self.emit(Notice(message=self.best.spent(state.step)))
        elif stopped:
            self.emit(Notice(message=f"stopped at step {state.step}; run again to go on from there"))
        path, embedding = places.result(config, name), places.embedding(config, name)
        return shared_result(
            self.processes, Result.of(folder, source, path, embedding, state.losses, stopped=stopped)
        )


class Following(Session):
    """In a process that is not the main one: where that reads, writes or draws, this one waits."""

    def begin(self, *, resumed: bool) -> Checkpoint | None:
        del resumed
        there, step, losses = self.processes.told(lambda: (False, 0, []))
        self.state.step, self.state.losses = step, losses
        self.validation = Validation(ValidationConfig(), self.steps)  # never due
        return Checkpoint.elsewhere(step) if there else None

    def emit(self, event: Event) -> None:
        self.show(event)

    def _preview(self) -> None:
        pass

    def _finish(self) -> Result:
        return shared_result(self.processes, None)
