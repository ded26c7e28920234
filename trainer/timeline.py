"""How far a run is and how long it still takes: work in phases, each at the pace that was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

STEPS = "steps"
TRIAL = "trying out one step"
PREVIEWS = "previews"
CLASS_PICTURES = "generating class pictures"
HELD_OUT = "measuring the held-out loss"
JUDGING = "judging the previews"
_REPEATED = (PREVIEWS, HELD_OUT, JUDGING)
"""They come several times; the other phases come once, and then their own total is right."""

_COST = {TRIAL: 4.0, "encoding captions": 0.3}
"""A unit of a phase in training steps, 1 where nothing is said, until the phase's own pace is measured."""
_MEMORY = 0.95
"""How much of what was measured counts after one more unit: the pace is that of the last 20 or so."""


@dataclass
class _Phase:
    expected: int = 0
    """Units in all, as far as known."""
    done: int = 0
    before: int = 0
    """Units of earlier rounds, for a phase that comes several times."""
    earlier: int = 0
    """Units that an earlier process has done: part of the run, none of the time."""
    total: int = 0
    seconds: float = 0.0
    units: float = 0.0
    pending: float = 0.0
    """Seconds since the last unit."""

    @property
    def left(self) -> int:
        return max(0, self.expected - self.done)

    def measure(self, units: int) -> None:
        """So many units more are done."""
        kept = _MEMORY**units
        self.seconds, self.units = self.seconds * kept + self.pending, self.units * kept + units
        self.pending = 0.0


class Timeline:
    """Call `enter` whenever work is done. All time counts for the phase that it passes in.

    expected: phase → units, as far as they are known before. costs: phase → what a unit takes in training
    steps, until it is measured. clock: seconds.
    """

    def __init__(
        self,
        expected: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        self._costs = {**_COST, **(costs or {})}
        self._phases = {name: _Phase(expected=units) for name, units in expected.items()}
        self._clock = clock
        self._begun = self._at = clock()
        self._now: str | None = None
        self._interrupted: str | None = None
        self._reached = 0.0

    def enter(self, name: str, done: int, total: int, seconds: float | None = None) -> None:
        """`done` of `total` units of this phase are done; the time up to the next call is this phase's.

        seconds: what the unit itself has taken. After other work the rest of the time was spent on coming
        back, and is the other work's.
        """
        self._pass()
        if seconds is not None and self._interrupted and name == self._now:
            phase, other = self._phases[name], self._phases[self._interrupted]
            rest = max(0.0, phase.pending - seconds)
            phase.pending -= rest
            other.seconds += rest if other.units else 0.0
            self._interrupted = None
        if name != self._now:
            self.leave()
        phase = self._phases.setdefault(name, _Phase())
        if name != self._now and name in _REPEATED:
            phase.before = phase.done
        now = phase.before + done
        if name == self._now and now > phase.done:
            phase.measure(now - phase.done)
        phase.done, phase.total = now, total
        phase.expected = max(phase.expected, phase.before + total) if name in _REPEATED else total
        self._now = name

    def leave(self) -> None:
        """The present phase has ended; steps go on later."""
        self._pass()
        if self._now is not None and self._now != STEPS:
            phase = self._phases[self._now]
            end = phase.before + phase.total
            if end > phase.done:
                phase.measure(end - phase.done)
            phase.done = end
            self._interrupted = self._now
        self._now = None

    def expect(self, name: str, left: int) -> None:
        """So many units of this phase are still to come."""
        phase = self._phases.setdefault(name, _Phase())
        phase.expected = phase.done + left

    def resume(self, name: str, done: int, total: int) -> None:
        """An earlier process has done so many units already."""
        self._phases[name] = _Phase(expected=total, done=done, earlier=done)

    def pace(self, name: str) -> float | None:
        """Seconds a unit; None before one is done."""
        phase = self._phases.get(name)
        return phase.seconds / phase.units if phase and phase.units else None

    @property
    def elapsed(self) -> float:
        """Seconds of this process."""
        return self._clock() - self._begun

    @property
    def left(self) -> float | None:
        """Seconds still to go. None before anything is measured."""
        step = self._step()
        if step is None:
            return None
        total = sum(phase.left * self._unit(name, step) for name, phase in self._phases.items())
        return max(0.0, total - self._since())

    @property
    def measured(self) -> bool:
        """Whether what is left rests on the pace of the steps themselves."""
        return self.pace(STEPS) is not None

    @property
    def fraction(self) -> float:
        """Of the whole run, 0 to 1. It never goes back."""
        step, left = self._step(), self.left
        if step is not None and left is not None:
            earlier = sum(phase.earlier * self._unit(name, step) for name, phase in self._phases.items())
            gone = self.elapsed + earlier
            self._reached = max(self._reached, gone / (gone + left) if gone + left else 0.0)
        return self._reached

    def _pass(self) -> None:
        now = self._clock()
        if self._now is not None:
            self._phases[self._now].pending += now - self._at
        self._at = now

    def _since(self) -> float:
        """Seconds into the present unit, at most what a unit takes."""
        if self._now is None or not self._phases[self._now].left:
            return 0.0
        pace = self.pace(self._now)
        return min(self._clock() - self._at, pace) if pace is not None else 0.0

    def _unit(self, name: str, step: float) -> float:
        pace = self.pace(name)
        return pace if pace is not None else step * self._costs.get(name, 1.0)

    def _step(self) -> float | None:
        """Seconds a training step: measured, or judged by other work."""
        own = self.pace(STEPS)
        if own is not None:
            return own
        work = [(p.seconds, p.units * self._costs.get(name, 1.0)) for name, p in self._phases.items()]
        units = sum(cost for _, cost in work)
        return sum(s for s, c in work if c) / units if units else None
