"""The pure part of the chart, imported by a browser from the server as the page does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from workbench.dev.server import Server

pytestmark = pytest.mark.web


@pytest.fixture(scope="module")
def page(browser: Browser, server: Server) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{server.url}/system_stats")  # any document of the same origin
    page.evaluate("async () => { window.m = await import('/extensions/in-graph-lora/loss_chart.mjs'); }")
    yield page
    context.close()


def run_of(page: Page, losses: list[float | None], total: int, then: str) -> Any:
    script = f"""([losses, steps]) => {{
        let run = m.newRun();
        losses.forEach((loss, i) => {{
            run = m.advanced(run, {{ step: i + 1, steps, loss, lr: 1e-4, seconds: 2 }});
        }});
        return {then};
    }}"""
    return page.evaluate(script, [losses, total])


def test_the_curve_fills_the_box_from_highest_to_lowest(page: Page) -> None:
    raw = run_of(page, [3, 2, 1], 3, "m.paths(run, 100, 50, 5).raw")
    assert raw == "M0.0 5.0L50.0 25.0L100.0 45.0"


def test_x_spans_the_whole_run_and_not_only_what_is_done(page: Page) -> None:
    assert run_of(page, [2, 1], 11, "m.paths(run, 100, 50, 5).raw") == "M0.0 5.0L10.0 45.0"


def test_equal_losses_and_one_point_give_finite_numbers(page: Page) -> None:
    for losses in ([1.0], [1.0, 1.0], [None], []):
        drawn = run_of(page, losses, 1, "JSON.stringify(m.paths(run, 100, 50))")
        assert "NaN" not in drawn
        assert "Infinity" not in drawn


def test_smoothing_is_the_mean_of_a_constant_and_keeps_gaps(page: Page) -> None:
    smooth = page.evaluate("() => m.smoothed([2, null, 2, 2])")
    assert smooth == [pytest.approx(2), None, pytest.approx(2), pytest.approx(2)]


def test_a_long_run_keeps_its_ends_and_few_points(page: Page) -> None:
    points = run_of(page, [1.0] * 5000, 5000, "run.points")
    assert len(points) <= 400
    assert points[-1]["step"] == 5000
    assert {point["loss"] for point in points} == {1.0}


def test_a_step_that_goes_back_begins_a_new_run(page: Page) -> None:
    event = "{step: 1, steps: 9, loss: 1, lr: 0, seconds: 1}"
    assert run_of(page, [1, 2, 3], 9, f"m.advanced(run, {event}).points") == [{"step": 1, "loss": 1}]


def test_summary_says_step_loss_pace_and_time_left(page: Page) -> None:
    def summary(losses: list[float | None], total: int) -> str:
        return run_of(page, losses, total, "m.summary(run)")

    assert summary([0.5, 0.5], 62) == "step 2/62 · loss 0.5000 · 2.00 s/step · 2:00 left"
    assert summary([0.5], 1) == "step 1/1 · loss 0.5000 · 2.00 s/step"
    assert summary([None], 1) == "step 1/1 · loss is not a number · 2.00 s/step"
    assert page.evaluate("() => m.clock(3675)") == "1:01:15"
