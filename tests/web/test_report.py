"""The report of Evaluate LoRA, a file that needs no server, and Compare Reports on the canvas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from in_graph_lora.trainer.evidence.choice import Bounds, choose
from in_graph_lora.trainer.evidence.figures import FIGURES, Measured
from in_graph_lora.trainer.evidence.measure import Findings
from in_graph_lora.trainer.evidence.page import page as report_page
from in_graph_lora.trainer.evidence.report import Report
from in_graph_lora.trainer.evidence.shots import BASE, Candidate, shots

from ..unit.test_evidence import drawn, found
from ..unit.test_evidence import written as compared
from .page import open_prompt

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from workbench.dev.server import Server

pytestmark = [pytest.mark.web, pytest.mark.slow]
STEPS = (100, 200, 300, 400)


def written(path: Path) -> Path:
    asked = shots({"trigger": ["x on a beach"], "class": ["a beach"], "unrelated": ["a lake"]}, 0, 4)
    steps = [Candidate(label=f"step {step}", step=step, strength=1.0) for step in STEPS]
    columns = [
        (
            candidate,
            Findings(figures={f.key: Measured(figure=f, values=[0.1 * n, -0.2, 0.3]) for f in FIGURES}),
        )
        for n, candidate in enumerate([BASE, *steps])
    ]
    report = Report(
        shots=asked,
        columns=columns,
        choice=choose([(c, f.figures) for c, f in columns], Bounds()),
        bounds=Bounds(),
        judge="",
        settings={"seeds": [0]},
        all_figures=True,
    )
    path.write_text(
        report_page(report, lambda *_: Image.new("RGB", (64, 64), "teal"), "my"), encoding="utf-8"
    )
    return path


def test_it_opens_from_the_disk_with_no_request_elsewhere_and_nothing_amiss(
    browser: Browser, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    path = written(tmp_path / "report.html")
    page.goto(path.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
    broken = "() => [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
    assert page.evaluate("() => document.images.length") == 12 * (1 + len(STEPS))
    assert page.evaluate(broken) == 0
    assert page.locator("svg").count() == len(FIGURES)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1200
    assert not page.locator("pre").is_visible()
    page.get_by_text("All that decides the figures").click()
    assert page.locator("pre").is_visible()
    page.close()


def test_run_shows_on_the_node_what_is_worse_and_what_is_not(canvas: Page, server: Server) -> None:
    root = server.base / "output" / "in-graph-lora" / "evidence"
    for name, shares in (("page-good", {"trigger": 1.0}), ("page-worse", {"trigger": 0.2, "class": 0.9})):
        (root / name).mkdir(parents=True, exist_ok=True)
        compared(root / name, "report", found(drawn(shares)))
    for after, said in (("page-good", "Nothing is worse by more than"), ("page-worse", "Worse: ")):
        inputs = {"before": "evidence/page-good", "after": f"evidence/{after}"}
        open_prompt(canvas, {"1": {"class_type": "CompareReports", "inputs": inputs}}, after)
        canvas.get_by_test_id("queue-button").click()
        canvas.get_by_text(said).first.wait_for(timeout=60_000)
    assert canvas.get_by_role("cell", name="subject fidelity").first.is_visible()
    assert canvas.complaints == []  # type: ignore[attr-defined]
