"""Which step of a run is best, by a judge of its sample pictures and the rule of Evaluate LoRA.

It goes by the pictures on disk and what the log says of those that were judged, so a run that was stopped and
goes on comes to the same choice. They are looked at between two legs, when the model is given back: a judge
is never beside a training in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from ..config import BY_JUDGE, TrainConfig
from ..data.records import Dataset
from ..errors import ConfigError
from ..events import Emit, Judged, Notice, Phase
from ..evidence.choice import Bounds, Choice, choose
from ..evidence.figures import BY_KEY, Measured
from ..evidence.known import TRAINED_ON, Known, gather
from ..evidence.measure import measure
from ..evidence.shots import Candidate, Kind, Shot
from ..evidence.sight import Judge, Sight, look
from ..text import mentions
from ..timeline import JUDGING
from .folder import RunFolder
from .previews import Previews
from .record import seen_by

Figures = Mapping[str, float]
UNRELATED: Kind = "unrelated"


@dataclass(frozen=True, kw_only=True)
class Judging:
    judge: Judge
    dataset: Dataset
    """What is trained on, with the held-out pictures marked."""


class JudgedSteps:
    """What the judge says of each step that has pictures, and what that decides."""

    def __init__(
        self,
        config: TrainConfig,
        judging: Judging | None,
        previews: Previews,
        folder: RunFolder,
        emit: Emit,
        check_interrupt: Callable[[], None],
    ) -> None:
        """judging: None is no judge, and nothing is looked at."""
        self.active = judging is not None and previews.sampler is not None
        self._config, self._judging, self._previews, self._folder = config, judging, previews, folder
        self._emit, self._check_interrupt = emit, check_interrupt
        wishes = config.validation
        self._bounds = Bounds(drift=wishes.max_drift, copies=wishes.max_copies)
        self._known: tuple[Known, Sight] | None = None
        self._shots = shots_of(config, judging.dataset.trigger) if judging is not None else []
        self.found: dict[int, Figures] = {}
        self._failed: set[int] = set()

    def look(self, reached: int) -> None:
        """Judge the steps up to `reached` that were drawn and not judged yet.

        Raises what stops the first look, before anything is trained in vain: ModelError for a judge that
        gives no numbers. A later failure is told, the run goes on, and the next look tries again.
        """
        if not self.active:
            return
        drawn = [step for step in self._previews.drawn() if step <= reached]
        if 0 not in drawn:
            return
        if not self.found:  # of a run that goes on
            self.found = {**self._folder.log.judged(seen_by(self._config))}
        self.found = {step: own for step, own in self.found.items() if step in drawn}
        for step in drawn:
            if step not in self.found:
                if not self.found:
                    self._known = self._known or self._first_look()
                try:
                    self._judge(step, *(self._known or self._first_look()))
                except Exception as error:  # noqa: BLE001 - as for a picture that fails
                    self._tell_once(step, error)

    def _tell_once(self, step: int, error: Exception) -> None:
        if step not in self._failed:
            self._failed.add(step)
            self._emit(Notice(message=f"step {step} could not be judged ({error}); the training goes on"))

    def _first_look(self) -> tuple[Known, Sight]:
        """At what the pictures are held against, and at those of the untouched model."""
        assert self._judging is not None
        base = self._seen(0)
        with self._previews.open(0, 0) as picture:
            size = picture.size
        self._emit(Phase(name=JUDGING, done=0, total=1, label="looking at the references"))
        judge, dataset = self._judging.judge, self._judging.dataset
        known, notes = gather(judge, (), dataset, (), size, check_interrupt=self._check_interrupt)
        if sum(shot.kind == UNRELATED for shot in self._shots) < 2:
            notes.append("drift is not measured: write two or more lines into unrelated_prompts")
        for note in [*notes, *([] if known.unseen else [TRAINED_ON])]:
            self._emit(Notice(message=note))
        self._known = known, base
        return self._known

    def _seen(self, step: int) -> Sight:
        assert self._judging is not None
        pictures = [partial(self._previews.open, step, i) for i in range(len(self._shots))]

        def told(done: int, of: int) -> None:
            self._check_interrupt()
            self._emit(Phase(name=JUDGING, done=done, total=of, label=f"judging the pictures of step {step}"))

        return look(self._judging.judge, pictures, f"the pictures of step {step}", told)

    def _judge(self, step: int, known: Known, base: Sight) -> None:
        findings = measure(self._shots, base, self._seen(step) if step else base, known)
        own = {key: found.value for key, found in findings.figures.items() if found.figure.shown}
        self.found[step] = own
        by = seen_by(self._config)
        if self._folder.log.judged(by).get(step) != own:
            self._emit(Judged(step=step, figures=own, best=self.best_step == step, seen_by=by))

    @property
    def choice(self) -> Choice:
        return best_of(self.found, self._bounds)[1]

    @property
    def best_step(self) -> int | None:
        return best_of(self.found, self._bounds)[0]

    @property
    def exhausted(self) -> bool:
        """`patience` previews in a row brought no better step."""
        patience, best = self._config.validation.patience, self.best_step
        return bool(patience) and best is not None and sum(s > best for s in self.found) >= patience

    def kept(self, step: int) -> str:
        return f"kept the LoRA of step {step}, which the judge finds best: {self.choice.reason}"

    def spent(self, step: int) -> str:
        patience = self._config.validation.patience
        return f"stopped early at step {step}: {patience} previews without a better step by the judge"


def best_of(found: Mapping[int, Figures], limits: Bounds) -> tuple[int | None, Choice]:
    """(the step, why). The untouched model of step 0 is no result to keep."""
    steps = sorted(step for step in found if step)
    columns = [
        (
            Candidate(label=f"step {step}", step=step, strength=1.0),
            {
                key: Measured(figure=BY_KEY[key], whole=(value, math.nan, 0))
                for key, value in found[step].items()
                if key in BY_KEY
            },
        )
        for step in steps
    ]
    choice = choose(columns, limits)
    return (steps[choice.column] if choice.column is not None else None), choice


def judged_before(folder: RunFolder) -> tuple[TrainConfig | None, dict[int, dict[str, float]]]:
    """(settings, step → figures) of a past run; nothing of a config of another version, or not whole."""
    try:
        config = TrainConfig.from_dict(folder.config())
    except (ConfigError, TypeError, AttributeError):
        return None, {}
    return config, folder.log.judged(seen_by(config)) if config.validation.judge else {}


def best_judged(folder: RunFolder, steps: Collection[int]) -> int | None:
    """Of a past run's steps; None where no judge decided."""
    config, figures = judged_before(folder)
    if config is None or config.validation.decides != BY_JUDGE:
        return None
    wishes = config.validation
    found = {step: own for step, own in figures.items() if step in steps}
    return best_of(found, Bounds(drift=wishes.max_drift, copies=wishes.max_copies))[0]


def shots_of(config: TrainConfig, trigger: str) -> list[Shot]:
    """The sample pictures as Evaluate LoRA names them.

    A line of `prompts` without the trigger is of the class; all are of the subject where no trigger is known.
    Raises ConfigError when no line has it.
    """
    preview = config.preview
    kinds: list[Kind] = [_kind(prompt, trigger) for prompt in preview.prompts]
    if "trigger" not in kinds:
        raise ConfigError(
            f"no line of prompts has the trigger {trigger!r}, so the judge would see no picture of the"
            " subject; write it into a line of prompts (Train Preview)"
        )
    kinds.extend(UNRELATED for _ in preview.unrelated_prompts)
    return [
        Shot(kind=kind, prompt=prompt, seed=(preview.seed + i) % 2**64)
        for i, (kind, prompt) in enumerate(zip(kinds, preview.all_prompts, strict=True))
    ]


def _kind(prompt: str, trigger: str) -> Kind:
    return "trigger" if not trigger or mentions(trigger, prompt) else "class"
