"""What the page knows of a run, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest

from .node import evaluated

NEW = "const run = new m.RunState(); const [first, ...more] = a;"


def state(whole: Any, *messages: Any, then: str, how: str = "add") -> Any:
    """`then` of a run that was rebuilt from `whole` and got the messages."""
    body = f"{NEW} run.rebuild(first); more.forEach((message) => run.{how}(message)); return {then};"
    return evaluated("run_state.mjs", body, whole, *messages)


def status(name: str = "running", **more: Any) -> dict[str, Any]:
    return {"state": name, "label": "steps", "phase": "steps", "step": 2, "steps": 10, **more}


def test_a_message_adds_its_points_to_those_of_the_server() -> None:
    whole = status(points=[[1, 0.5, 1e-4]], held_out=[[0, 0.6]])
    found = state(whole, status(points=[[2, 0.4, 1e-4], [3, 0.3, 1e-4]]), then="[run.steps, run.losses]")
    assert found == [[1, 2, 3], [0.5, 0.4, 0.3]]


def test_a_message_that_says_again_what_is_known_adds_nothing() -> None:
    whole = status(points=[[1, 0.5, 0], [2, 0.4, 0]], notices=["skipped"])
    again = status(points=[[2, 0.4, 0], [3, 0.3, 0]], notices=["skipped"])
    assert state(whole, again, then="[run.steps, run.notices]", how="addAgain") == [[1, 2, 3], ["skipped"]]


def test_a_run_that_goes_back_forgets_what_comes_again() -> None:
    whole = status(points=[[s, 0.1 * s, 0] for s in range(1, 6)], held_out=[[0, 1], [4, 2]])
    found = state(whole, status(points=[[3, 9, 0]]), then="[run.steps, run.losses, [...run.heldOut.keys()]]")
    assert found == [[1, 2, 3], [pytest.approx(0.1), pytest.approx(0.2), 9], [0]]


def test_columns_have_a_row_for_a_step_that_only_has_a_held_out_loss() -> None:
    whole = status(points=[[1, 2, 1e-4], [2, None, 1e-4]], held_out=[[0, 3], [2, 1]])
    steps, loss, smooth, held_out, rate = state(whole, then="run.columns(0.9)")
    assert (steps, loss, held_out) == ([0, 1, 2], [None, 2, None], [3, None, 1])
    assert smooth == [None, pytest.approx(2), None]
    assert rate == [None, 1e-4, 1e-4]


def test_smoothing_is_the_mean_of_a_constant_and_none_leaves_the_losses() -> None:
    smooth = evaluated("loss_chart.mjs", "return [m.smoothed([2, null, 2, 2]), m.smoothed([3, 1], 0)];")
    assert smooth == [[pytest.approx(2), None, pytest.approx(2), pytest.approx(2)], [3, 1]]


def test_ten_thousand_steps_are_drawn_in_no_time() -> None:
    whole = status(points=[[s, 1.0, 1e-4] for s in range(1, 10_001)])
    body = f"{NEW} run.rebuild(first); const t = Date.now(); run.columns(0.9); return Date.now() - t;"
    assert evaluated("run_state.mjs", body, whole) < 200  # five times a second; a slow machine takes 20 ms


def test_the_headline_is_the_present_phase_and_nothing_stale() -> None:
    assert state(status(), then="run.headline") == "step 2/10"
    encoding = status(label="encoding captions", phase="encoding captions", done=4, total=5)
    assert state(status(), encoding, then="run.headline") == "encoding captions 5/5"
    assert state(encoding, status(), then="run.headline") == "step 2/10"
    assert state(status("stopping"), then="run.headline") == "stopping… (step 2/10)"
    assert "Continue" in state(status("paused"), then="run.headline")


def test_what_the_user_has_asked_for_is_not_undone_by_a_message_of_a_moment_before() -> None:
    asked = "run.ask(a[1]) ?? (run.add(a[2]), run.status.state)"
    body = f"const run = new m.RunState(); run.rebuild(a[0]); return {asked};"
    for wish, end in (("stopping", "stopped"), ("pausing", "paused")):
        assert evaluated("run_state.mjs", body, status(), wish, status()) == wish
        assert evaluated("run_state.mjs", body, status(), wish, status(end)) == end
        assert state(status(wish), status(), then="run.status.state") == "running", "the server has said so"


def test_a_wish_that_did_not_reach_the_server_is_forgotten() -> None:
    body = "const run = new m.RunState(); run.rebuild(a[0]); run.ask('stopping'); run.refused();"
    assert evaluated("run_state.mjs", f"{body} return run.status.state;", status()) == "running"
    late = f"{body.replace('run.refused()', 'run.add(a[1]); run.refused()')} return run.status.state;"
    assert evaluated("run_state.mjs", late, status(), status("finished")) == "finished"


def test_time_and_memory_are_said_while_it_trains_and_not_after() -> None:
    now = {"pace": 0.5, "elapsed": 75, "left": 3675, "measured": True, "memory": 6.21e9, "memory_peak": 8e9}
    said = state(status(**now), then="run.details")
    assert said == "0.50 s/step · 1:15 elapsed · 1:01:15 left · memory 6.2 GB, peak 8.0 GB"
    assert "about 1:01:15 left" in state(status(**now | {"measured": False}), then="run.details")
    assert state(status("stopped", **now), then="run.details") == ""


def test_the_lowest_held_out_loss_is_named() -> None:
    whole = status(points=[[1, None, 0]], held_out=[[0, 0.2], [5, 0.1], [10, 0.15]])
    measures = state(whole, then="run.measures")
    assert measures == "loss is not a number · held-out 0.1500 (lowest 0.1000 at 5)"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            {
                "type": "custom_validation_failed",
                "details": "name - name '../a' cannot be a file name",
                "extra_info": {"input_name": "name"},
            },
            "name '../a' cannot be a file name",
        ),
        (
            {
                "type": "required_input_missing",
                "details": "vae",
                "extra_info": {"input_name": "vae", "input_config": ["VAE", {}]},
            },
            "vae is missing; connect a VAE",
        ),
        (
            {
                "type": "value_smaller_than_min",
                "details": "steps",
                "extra_info": {
                    "input_name": "steps",
                    "received_value": 0,
                    "input_config": ["INT", {"min": 1}],
                },
            },
            "steps is 0; the lowest is 1",
        ),
        ({"type": "another", "message": "Odd", "details": "x"}, "Odd: x"),
    ],
)
def test_validation_says_what_to_do(error: Any, sentence: str) -> None:
    assert (
        evaluated("problems.mjs", "return m.validationSentence(a[0])", {"message": "", **error}) == sentence
    )


def test_our_errors_are_sentences_and_those_of_others_keep_their_kind() -> None:
    say = "return m.executionSentence(a[0])"
    ours = {"exception_type": "x.trainer.errors.ConfigError", "exception_message": "lower batch_size\n"}
    assert evaluated("problems.mjs", say, ours) == "lower batch_size"
    others = {"exception_type": "RuntimeError", "exception_message": "no"}
    assert evaluated("problems.mjs", say, others) == "RuntimeError: no"


def test_a_toast_is_shown_when_a_training_ends_and_only_then() -> None:
    ends = ["finished", "stopped", "paused", "cancelled", "failed"]
    say = "return a[0].map((state) => m.toastOf({ state, name: 'n', step: 1, steps: 2 })?.severity ?? null)"
    severities = evaluated("toasts.mjs", say, [*ends, "running", "stopping"])
    assert severities == ["success", "info", "info", "warn", "error", None, None]
