"""A training on the canvas by real clicks: run, stop, pause, continue, tabs, reload, another browser."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from ..live.test_crash import graph, write_pictures
from .page import READY, open_prompt, open_workflow, queue

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.web, pytest.mark.slow]
Json = dict[str, Any]

# As a user's workflow: with an id of its own, and the training in view.
MAKE = """(id) => {
    app.graph.nodes.forEach((node, i) => { node.pos = [40 + 340 * (i % 2), 120 + 420 * (i >> 1)]; });
    const train = app.graph.nodes.find((node) => node.type === 'TrainLoRA');
    if (train) { train.pos = [800, 60]; train.setSize([420, train.computeSize()[1]]); }
    const workflow = app.graph.serialize();
    workflow.extra = { ds: { scale: 1, offset: [0, 0] } };
    return { ...workflow, id };
}"""
VALUES = "() => app.graph.serialize().nodes.map((node) => [node.id, node.widgets_values])"
PREVIEWS = {"3": {"every": 4, "measure_every": 4, "prompts": "aawxbc figurine\na figurine"}}
ENDED = "async () => Object.keys(await (await fetch('/history')).json()).length"
SOON = 120_000


class Shown:
    """Train LoRA's panel on a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.panel: Locator = page.locator(".in-graph-lora-run:visible")

    def says(self, pattern: str) -> str:
        """Waits until the panel says so."""
        self.page.wait_for_function(
            "(pattern) => [...document.querySelectorAll('.in-graph-lora-run')].some((panel) =>"
            " panel.checkVisibility() && new RegExp(pattern).test(panel.innerText))",
            arg=pattern,
            timeout=SOON,
        )
        return self.panel.inner_text()

    def step(self, at_least: int) -> int:
        """Waits for a step."""
        self.page.wait_for_function(
            "(least) => [...document.querySelectorAll('.in-graph-lora-run')].some((panel) =>"
            " panel.checkVisibility() && Number(/step (\\d+)[/]/.exec(panel.innerText)?.[1]) >= least)",
            arg=at_least,
            timeout=SOON,
        )
        found = re.search(r"step (\d+)/", self.panel.inner_text())
        return int(found[1]) if found else at_least

    def press(self, button: str) -> None:
        self.panel.get_by_role("button", name=button, exact=True).click()


def run(page: Page) -> None:
    page.get_by_test_id("queue-button").click()


def workflow(page: Page, prompt: Json) -> Json:
    open_prompt(page, prompt, "made")
    return page.evaluate(MAKE, str(uuid.uuid4()))


@pytest.fixture
def prompt(server: Any, request: pytest.FixtureRequest) -> Json:
    folder = write_pictures(server.base / "input" / "canvas-pictures")
    name = f"canvas-{request.node.callspec.id}-{uuid.uuid4().hex[:6]}"
    made = graph(folder, **{"4": {"name": name, "steps": 300, "batch_size": 1, "preview": ["3", 0]}})
    made["3"]["inputs"] = {**made["3"]["inputs"], **PREVIEWS["3"]}
    return made


def test_a_training_is_shown_stopped_paused_and_found_again(canvas: Page, prompt: Json, server: Any) -> None:
    mine, shown = workflow(canvas, prompt), Shown(canvas)
    open_workflow(canvas, mine, "mine")
    before = canvas.evaluate(VALUES)
    assert shown.panel.count() == 0, "an idle node is small"

    run(canvas)
    shown.says(r"plan: ")
    shown.step(2)
    assert shown.panel.locator(".uplot canvas").count() == 1
    assert 0 < shown.panel.locator("progress").evaluate("(bar) => bar.value") < 1
    assert re.search(r"left · memory \d+\.\d GB, peak \d", shown.says("left"))

    # Stop and keep, and Run goes on.
    shown.press("Stop and keep")
    assert "stopping…" in shown.panel.inner_text()
    stopped = int(re.findall(r"Step (\d+) of 300", shown.says("Stopped; .*Step"))[0])
    canvas.get_by_text("Training stopped").wait_for()
    run(canvas)
    assert shown.step(stopped + 1) <= stopped + 20

    # Pause: another Run trains nothing; Continue goes on.
    shown.press("Pause")
    paused = re.findall(r"Step (\d+) of 300", shown.says("Paused"))
    done = canvas.evaluate(f"({ENDED})()")
    run(canvas)
    canvas.wait_for_function(f"async (n) => await ({ENDED})() === n", arg=done + 1, timeout=SOON)
    shown.says(rf"Paused[\s\S]*Step {paused[0]} of 300")
    shown.press("Continue")
    reached = shown.step(int(paused[0]) + 1)
    assert canvas.evaluate(VALUES) == before, "nothing of the graph has changed"

    # Another workflow with a node of the same number shows nothing; this one shows it again.
    other = {**mine, "id": str(uuid.uuid4())}
    open_workflow(canvas, other, "other")
    canvas.wait_for_timeout(1500)
    assert shown.panel.count() == 0
    canvas.locator(".workflow-tabs").get_by_text("mine", exact=True).click()
    reached = shown.step(reached)

    # A reload in the middle, and another browser, from which it is stopped.
    canvas.reload(wait_until="domcontentloaded")
    canvas.wait_for_function(READY, timeout=SOON)
    shown.step(reached)
    assert shown.panel.locator(".uplot canvas").count() == 1
    browser = canvas.context.browser
    assert browser is not None
    second = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()
    second.goto(server.url, wait_until="domcontentloaded")
    second.wait_for_function(READY, timeout=SOON)
    open_workflow(second, mine, "elsewhere")
    elsewhere = Shown(second)
    elsewhere.step(reached)
    elsewhere.press("Stop and keep")
    elsewhere.says("Stopped; ")
    shown.says("Stopped; ")
    second.context.close()

    # Previews: step 0 beside the step of the slider, in full size by a click.
    slider = shown.panel.get_by_label("step of the preview")
    last = int(slider.get_attribute("max") or 0)
    assert last >= 1
    slider.fill("1")
    pictures = shown.panel.locator(".in-graph-lora-previews img")
    assert pictures.count() == 4
    assert "step 0 | step 4" in shown.panel.inner_text()
    pictures.nth(1).click()
    dialog = canvas.locator("dialog.igl-full")
    large = dialog.locator("img")
    large.wait_for()
    canvas.wait_for_function("() => document.querySelector('dialog.igl-full img').naturalWidth === 64")
    assert f"step 4 · aawxbc figurine (2/{last + 1})" in dialog.inner_text()
    canvas.keyboard.press("ArrowLeft")
    assert "step 0" in dialog.inner_text()
    canvas.keyboard.press("Escape")
    assert large.count() == 0

    saved = canvas.evaluate("() => app.graph.serialize()")
    assert [[node["id"], node.get("widgets_values")] for node in saved["nodes"]] == before
    assert canvas.complaints == []  # type: ignore[attr-defined]


def test_what_is_wrong_is_said_on_the_node_until_it_runs(canvas: Page, prompt: Json) -> None:
    prompt["4"]["inputs"] |= {"steps": 1, "name": "../a"}
    del prompt["4"]["inputs"]["preview"]
    open_workflow(canvas, workflow(canvas, prompt), "wrong")
    problem = canvas.locator(".in-graph-lora-problem:visible")
    run(canvas)
    problem.wait_for()
    assert "cannot be a file name" in problem.inner_text()
    assert problem.evaluate("(box) => getComputedStyle(box).userSelect") == "text"
    size = "() => app.graph.nodes.find((node) => node.type === 'TrainLoRA').size[1]"
    with_problem = canvas.evaluate(size)
    canvas.keyboard.press("Escape")

    change = "([name, value]) => { const n = app.graph.nodes.find((node) => node.type === 'TrainLoRA');"
    change += " n.widgets.find((w) => w.name === name).value = value; }"
    canvas.evaluate(change, ["name", f"right-{uuid.uuid4().hex[:6]}"])
    canvas.evaluate(change, ["batch_size", 64])
    queue(canvas)
    canvas.wait_for_function(
        "() => /larger than the dataset/.test(document.querySelector('.in-graph-lora-problem')?.innerText)",
        timeout=SOON,
    )
    assert problem.count() == 1

    canvas.evaluate(change, ["batch_size", 1])
    queue(canvas)
    Shown(canvas).says("Finished")
    assert problem.count() == 0
    assert canvas.evaluate(size) > 0 < with_problem
