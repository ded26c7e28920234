"""Compare Reports on the canvas: two reports are chosen, and the node says what is worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..live.test_reports import GOOD, WORSE, comparing, reports  # noqa: F401 - a fixture
from .page import open_prompt, queue

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.web, pytest.mark.slow]

NAMES = "() => app.graph.nodes.find((n) => n.type === 'CompareReports').widgets[0].options.values"

CHOOSE = "(name) => { app.graph.nodes.find((n) => n.type === 'CompareReports').widgets[1].value = name; }"


def test_a_worse_report_is_told_on_the_node(canvas: Page, reports: Path) -> None:  # noqa: F811
    open_prompt(canvas, comparing(GOOD, GOOD), "compare")
    assert {GOOD, WORSE} <= set(canvas.evaluate(NAMES))
    queue(canvas)
    text = canvas.locator(".in-graph-lora-text")
    text.get_by_text("Nothing is worse by more than its interval.").wait_for(timeout=60_000)
    if canvas.evaluate("LiteGraph.vueNodesMode"):
        node = canvas.locator("[data-node-id]", has_text="Compare Reports").first
        node.get_by_role("combobox").nth(1).click()
        canvas.get_by_role("option", name=WORSE).click()
    else:
        canvas.evaluate(CHOOSE, WORSE)
    queue(canvas)
    text.get_by_text("Worse", exact=True).wait_for(timeout=60_000)
    assert text.locator("td", has_text="subject fidelity").count() == 2, "without and with the LoRA"
    assert canvas.complaints == []  # type: ignore[attr-defined]
