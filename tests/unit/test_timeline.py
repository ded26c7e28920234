"""The bar over a whole run: it rises all the time, and what is left is what the clock then shows."""

from __future__ import annotations

import pytest

from in_graph_lora.trainer.timeline import STEPS, TRIAL, Timeline


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


Work = list[tuple[str, int, float]]
"""(phase, units, seconds a unit)"""


def walk(line: Timeline, clock: Clock, work: Work) -> list[tuple[float, float | None]]:
    """Do the work, one after another; (fraction, left) after each unit."""
    seen = []
    reached: dict[str, int] = {}
    for name, units, seconds in work:
        start = reached.get(name, 0) if name == STEPS else 0
        total = 100 if name == STEPS else units
        for done in range(units):
            line.enter(name, start + done, total)
            clock.now += seconds
            seen.append((line.fraction, line.left))
        if name == STEPS:
            line.enter(name, start + units, total)
            reached[name] = start + units
        else:
            line.leave()
        seen.append((line.fraction, line.left))
    return seen


WHOLE = [
    *((TRIAL, 1, 4.0), ("encoding pictures", 10, 0.5), ("encoding captions", 10, 0.1), ("previews", 2, 6.0)),
    *((STEPS, 50, 1.0), ("previews", 2, 6.0), (STEPS, 50, 1.0), ("previews", 2, 6.0)),
]
EXPECTED = {TRIAL: 1, "encoding pictures": 10, "encoding captions": 10, "previews": 6, STEPS: 100}


def test_the_bar_never_goes_back_and_ends_full() -> None:
    clock = Clock()
    fractions = [f for f, _ in walk(Timeline(EXPECTED, clock), clock, WHOLE)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert fractions[0] < 0.1


def test_what_is_left_is_what_it_takes_once_each_pace_is_known() -> None:
    clock = Clock()
    line = Timeline(EXPECTED, clock)
    seen = walk(line, clock, WHOLE[:5])
    _, left = seen[-1]
    assert left == pytest.approx(4 * 6.0 + 50 * 1.0, rel=0.01)
    fraction, _ = seen[-1]
    assert fraction == pytest.approx(clock.now / (clock.now + left), rel=0.01)


def test_nothing_is_said_of_what_is_left_before_anything_was_measured() -> None:
    clock = Clock()
    line = Timeline(EXPECTED, clock)
    assert line.left is None
    assert line.fraction == 0
    line.enter(TRIAL, 0, 1)
    assert line.left is None


def test_the_pace_follows_steps_that_become_slower() -> None:
    clock = Clock()
    line = Timeline({STEPS: 400}, clock)
    walk(line, clock, [(STEPS, 50, 1.0)])
    assert line.pace(STEPS) == pytest.approx(1.0)
    for done in range(50, 130):
        clock.now += 3.0
        line.enter(STEPS, done + 1, 400)
    assert line.pace(STEPS) == pytest.approx(3.0, rel=0.05)


def test_steps_of_an_earlier_process_are_part_of_the_bar_and_none_of_the_time() -> None:
    clock = Clock()
    line = Timeline({}, clock)
    line.resume(STEPS, 50, 100)
    for done in range(50, 61):
        line.enter(STEPS, done, 100)
        clock.now += 2.0
    assert line.elapsed == 22
    assert line.pace(STEPS) == pytest.approx(2.0, rel=0.1)
    assert line.fraction == pytest.approx(0.61, abs=0.02)


def test_more_previews_than_expected_raise_what_is_left() -> None:
    clock = Clock()
    line = Timeline({STEPS: 10, "previews": 1}, clock, costs={"previews": 20.0})
    for done in range(4):
        line.enter("previews", done, 4)
        clock.now += 0.5
    line.leave()
    line.expect("previews", 7)
    assert line.left == pytest.approx(7 * 0.5 + 10 * 0.5 / 20)


def test_coming_back_from_a_preview_counts_for_the_preview_and_not_for_the_first_step() -> None:
    clock = Clock()
    line = Timeline({STEPS: 10, "previews": 2}, clock)
    line.enter("previews", 0, 1)
    clock.now += 2
    line.enter(STEPS, 0, 10)
    clock.now += 3 + 0.5  # the model is lent again, then the step
    line.enter(STEPS, 1, 10, seconds=0.5)
    assert line.pace(STEPS) == pytest.approx(0.5)
    assert line.pace("previews") == pytest.approx(5)
    clock.now += 0.5 + 0.3  # a checkpoint
    line.enter(STEPS, 2, 10, seconds=0.5)
    assert line.pace(STEPS) == pytest.approx(0.65, rel=0.05), "what comes between two steps is theirs"
