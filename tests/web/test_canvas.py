"""The page, in a real browser: the example workflow opens whole, and a run is drawn on its node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from workbench.client import Client
from workbench.workflow import to_prompt

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.web, pytest.mark.slow]
Json = dict[str, Any]

LOAD = "async (workflow) => { await app.loadGraphData(workflow); }"
SEND = "([name, detail]) => { (app.api ?? window.comfyAPI.api.api).dispatchCustomEvent(name, detail); }"
UNKNOWN = """() => app.graph.nodes
    .map((node) => node.type)
    .filter((type) => !(type in LiteGraph.registered_node_types))"""
PANEL = ".in-graph-lora-run"


@pytest.fixture
def workflow(repo_root: Path) -> Json:
    return json.loads((repo_root / "workflows" / "first_lora.json").read_text(encoding="utf-8"))


@pytest.fixture(params=["first_lora.json", "subject.json", "wan22_two_stages.json"])
def example(request: pytest.FixtureRequest, repo_root: Path) -> Json:
    """Each of the workflows that the pack ships."""
    return json.loads((repo_root / "workflows" / request.param).read_text(encoding="utf-8"))


def node_of(workflow: Json, kind: str) -> Json:
    return next(node for node in workflow["nodes"] if node["type"] == kind)


def values(workflow: Json) -> Json:
    return {node["id"]: (node["type"], node.get("widgets_values") or []) for node in workflow["nodes"]}


def assert_same_values(saved: Json, workflow: Json) -> None:
    """Inputs are only ever appended, so a newer node may save more values behind those of the file."""
    expected, got = values(workflow), values(saved)
    assert got.keys() == expected.keys()
    for number, (kind, given) in expected.items():
        assert (got[number][0], got[number][1][: len(given)]) == (kind, given)


def send(page: Page, name: str, **detail: Any) -> None:
    page.evaluate(SEND, [name, detail])


def train(page: Page, node_id: int, steps: range, total: int) -> None:
    for step in steps:
        loss = None if step == 3 else 0.1 + 0.05 / step
        progress = {"step": step, "steps": total, "loss": loss, "lr": 1e-4, "seconds": 0.5}
        send(page, "in_graph_lora.progress", node_id=str(node_id), **progress)


def test_the_example_opens_without_a_missing_node(canvas: Page, example: Json) -> None:
    canvas.evaluate(LOAD, example)
    assert canvas.evaluate("() => app.graph.nodes.length") == len(example["nodes"])
    assert canvas.evaluate(UNKNOWN) == []

    example["nodes"][0]["type"] = "NoSuchNode"  # the check above is able to fail
    canvas.evaluate(LOAD, example)
    assert canvas.evaluate(UNKNOWN) == ["NoSuchNode"]


def test_the_example_keeps_its_values_when_loaded_and_saved(canvas: Page, example: Json) -> None:
    canvas.evaluate(LOAD, example)
    saved = canvas.evaluate("() => app.graph.serialize()")
    assert_same_values(saved, example)
    assert sorted(map(tuple, saved["links"])) == sorted(map(tuple, example["links"]))


def test_run_on_the_page_sends_the_graph_that_the_demo_sends(
    canvas: Page, client: Client, example: Json
) -> None:
    canvas.evaluate(LOAD, example)
    sent = canvas.evaluate("async () => (await app.graphToPrompt()).output")
    expected = to_prompt(example, client.object_info())
    assert sent.keys() == expected.keys()
    for number, node in expected.items():
        assert sent[number]["class_type"] == node["class_type"]
        got = sent[number]["inputs"]
        assert {name: got.get(name) for name in node["inputs"]} == node["inputs"], node["class_type"]


def test_a_run_is_drawn_on_its_node_and_saves_no_value(canvas: Page, workflow: Json) -> None:
    canvas.evaluate(LOAD, workflow)
    before = values(canvas.evaluate("() => app.graph.serialize()"))
    node_id = node_of(workflow, "TrainLoRA")["id"]
    assert canvas.locator(PANEL).count() == 0

    train(canvas, node_id, range(1, 41), total=100)
    panel = canvas.locator(PANEL)
    panel.wait_for(state="visible")
    box = panel.bounding_box()
    assert box is not None
    assert box["width"] > 100
    assert box["height"] > 40
    raw, held_out, smooth = (path.get_attribute("d") for path in panel.locator("path").all())
    assert raw.count("M") == 2, "the step without a loss is a gap"
    assert smooth.count("L") == 37
    assert held_out == ""
    assert "step 40/100" in panel.inner_text()
    assert "0.50 s/step · 0:30 left" in panel.inner_text()

    send(canvas, "execution_interrupted", prompt_id="p", node_id=str(node_id), node_type="TrainLoRA")
    assert "Stopped" in panel.inner_text()

    train(canvas, node_id, range(1, 3), total=100)
    assert "step 2/100" in panel.inner_text(), "a new run begins a new curve"
    assert "Stopped" not in panel.inner_text()

    finished = {"lora_path": "loras/my_lora.safetensors", "run_dir": "my_lora/1", "notices": ["<b>1 skipped"]}
    output = {"run": [finished]}
    send(canvas, "executed", node=str(node_id), display_node=str(node_id), prompt_id="p", output=output)
    assert "loras/my_lora.safetensors" in panel.inner_text()
    assert "<b>1 skipped" in panel.inner_text(), "other people's text is never markup"

    assert values(canvas.evaluate("() => app.graph.serialize()")) == before
    assert canvas.complaints == []


def test_text_of_a_node_is_shown_on_it_once(canvas: Page, workflow: Json) -> None:
    canvas.evaluate(LOAD, workflow)
    for kind in ("LoadDataset", "CaptionImages", "CompareBaseline"):
        number = str(node_of(workflow, kind)["id"])
        output = {"text": [f"{kind} says"]}
        send(canvas, "executed", node=number, display_node=number, prompt_id="p", output=output)
    shown = [box.text_content() for box in canvas.locator(".in-graph-lora-text").all()]
    # The report of CompareBaseline goes to the connected node.
    assert sorted(shown) == ["CaptionImages says", "LoadDataset says"]


def test_an_event_for_a_node_that_is_not_there_is_ignored(canvas: Page, workflow: Json) -> None:
    canvas.evaluate(LOAD, workflow)
    loader = node_of(workflow, "LoadDataset")["id"]
    for number in (loader, 4711, "1:2", None):
        train(canvas, number, range(1, 2), total=2)
    assert canvas.locator(PANEL).count() == 0
    assert canvas.complaints == []


def test_the_held_out_loss_is_drawn_beside_the_loss(canvas: Page, workflow: Json) -> None:
    canvas.evaluate(LOAD, workflow)
    node_id = str(node_of(workflow, "TrainLoRA")["id"])
    send(canvas, "in_graph_lora.progress", node_id=node_id, step=0, held_out=0.2, best=False)
    panel = canvas.locator(PANEL)
    assert "held-out loss 0.2000" in panel.inner_text()
    train(canvas, int(node_id), range(1, 11), total=20)
    send(canvas, "in_graph_lora.progress", node_id=node_id, step=5, held_out=0.1, best=True)
    send(canvas, "in_graph_lora.progress", node_id=node_id, step=10, held_out=0.15, best=False)
    _, held_out, _ = (path.get_attribute("d") for path in panel.locator("path").all())
    assert held_out.count("L") == 2
    assert "held-out 0.1500 (lowest 0.1000 at 5)" in panel.inner_text()
    assert "step 10/20" in panel.inner_text()


def test_a_page_that_is_opened_while_it_trains_gets_the_whole_curve(canvas: Page, workflow: Json) -> None:
    canvas.evaluate(LOAD, workflow)
    node_id = str(node_of(workflow, "TrainLoRA")["id"])
    sent = [{"step": 0, "held_out": 0.2, "best": False}] + [
        {"step": step, "steps": 50, "loss": 1 / step, "lr": 1e-4, "seconds": 0.5} for step in range(1, 31)
    ]
    canvas.route(f"**/in_graph_lora/progress/{node_id}", lambda route: route.fulfill(json={"progress": sent}))
    train(canvas, int(node_id), range(30, 31), total=50)
    path = canvas.locator(PANEL).locator("path").first
    canvas.wait_for_function(
        "path => path.getAttribute('d').split('L').length === 30", arg=path.element_handle()
    )
    train(canvas, int(node_id), range(31, 33), total=50)
    assert path.get_attribute("d").count("L") == 31
