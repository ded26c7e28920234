"""The page, in a real browser: the example workflow opens whole, and a run is drawn on its node."""

from __future__ import annotations

import contextlib
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


SHIPPED = (
    "first_lora",
    "subject",
    "compare_steps",
    "textual_inversion",
    "custom_diffusion",
    "recipe",
    "wan22_two_stages",
)


@pytest.fixture(params=[f"{name}.json" for name in SHIPPED])
def example(request: pytest.FixtureRequest, repo_root: Path) -> Json:
    """Each of the workflows that the pack ships."""
    return json.loads((repo_root / "workflows" / request.param).read_text(encoding="utf-8"))


def node_of(workflow: Json, kind: str) -> Json:
    return next(node for node in workflow["nodes"] if node["type"] == kind)


def values(workflow: Json) -> Json:
    return {node["id"]: (node["type"], node.get("widgets_values") or []) for node in workflow["nodes"]}


def links(workflow: Json) -> list[tuple[Any, ...]]:
    """With the name of the input: its place moves when a node gets new inputs."""
    inputs = {node["id"]: node.get("inputs", []) for node in workflow["nodes"]}
    return sorted((*a, to, inputs[to][slot]["name"], kind) for *a, to, slot, kind in workflow["links"])


def assert_same_values(saved: Json, workflow: Json) -> None:
    """Inputs are only ever appended, so a newer node may save more values behind those of the file."""
    expected, got = values(workflow), values(saved)
    assert got.keys() == expected.keys()
    for number, (kind, given) in expected.items():
        assert (got[number][0], got[number][1][: len(given)]) == (kind, given)


def send(page: Page, event: str, /, **detail: Any) -> None:
    page.evaluate(SEND, [event, detail])


def progress(page: Page, node_id: object, points: list[Any], **more: Any) -> None:
    """A message of a training that came from the workflow in front."""
    step = points[-1][0] if points else 0
    told = {"state": "running", "label": "steps", "step": step, "steps": 100, "name": "my_lora", "run": ""}
    workflow = page.evaluate("() => app.graph.id")
    message = {"node_id": str(node_id), "prompt_id": "p", "workflow": workflow, "points": points, **told}
    send(page, "in_graph_lora.progress", **{**message, **more})


def test_the_example_opens_without_a_missing_node(same_canvas: Page, example: Json) -> None:
    same_canvas.evaluate(LOAD, example)
    assert same_canvas.evaluate("() => app.graph.nodes.length") == len(example["nodes"])
    assert same_canvas.evaluate(UNKNOWN) == []

    example["nodes"][0]["type"] = "NoSuchNode"  # the check above is able to fail
    same_canvas.evaluate(LOAD, example)
    assert same_canvas.evaluate(UNKNOWN) == ["NoSuchNode"]


def test_the_example_keeps_its_values_when_loaded_and_saved(same_canvas: Page, example: Json) -> None:
    same_canvas.evaluate(LOAD, example)
    saved = same_canvas.evaluate("() => app.graph.serialize()")
    assert_same_values(saved, example)
    assert links(saved) == links(example)


def test_run_on_the_page_sends_the_graph_that_the_demo_sends(
    same_canvas: Page, client: Client, example: Json
) -> None:
    same_canvas.evaluate(LOAD, example)
    sent = same_canvas.evaluate("async () => (await app.graphToPrompt()).output")
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

    points = [[step, None if step == 3 else 0.1 + 0.05 / step, 1e-4] for step in range(1, 41)]
    progress(canvas, node_id, points, pace=0.5, elapsed=20, left=30, measured=True, fraction=0.4)
    panel = canvas.locator(PANEL)
    panel.wait_for(state="visible")
    box = panel.bounding_box()
    assert box is not None
    assert box["width"] > 100
    assert box["height"] > 100  # the workflow is zoomed
    assert panel.locator(".uplot canvas").count() == 1
    assert "step 40/100" in panel.inner_text()
    assert "0.50 s/step · 0:20 elapsed · 0:30 left" in panel.inner_text()

    progress(canvas, node_id, [], state="cancelled", step=40)
    assert "Cancelled" in panel.inner_text()
    assert "left" not in panel.inner_text()

    progress(canvas, node_id, [[1, 1.0, 1e-4]], prompt_id="another")
    assert "step 1/100" in panel.inner_text(), "a new run begins a new curve"
    assert "Cancelled" not in panel.inner_text()

    progress(canvas, node_id, [], prompt_id="another", notices=["<b>1 skipped"])
    assert "<b>1 skipped" in panel.inner_text(), "other people's text is never markup"
    finished = {"lora_path": "loras/my_lora.safetensors", "run_dir": "my_lora/1"}
    output = {"run": [finished]}
    send(canvas, "executed", node=str(node_id), display_node=str(node_id), prompt_id="p", output=output)
    assert "loras/my_lora.safetensors" in panel.inner_text()

    assert values(canvas.evaluate("() => app.graph.serialize()")) == before
    assert canvas.complaints == []


def test_ten_thousand_steps_are_drawn_smoothly(canvas: Page, workflow: Json) -> None:
    canvas.evaluate(LOAD, workflow)
    node_id = node_of(workflow, "TrainLoRA")["id"]
    points = [[step, 0.1 + 0.05 / step, 1e-4] for step in range(1, 10_001)]
    progress(canvas, node_id, points, steps=20_000)
    took = []
    for step in range(10_001, 10_011):
        canvas.evaluate("() => { window.began = performance.now(); }")
        progress(canvas, node_id, [[step, 0.1, 1e-4]], steps=20_000)
        took.append(
            canvas.evaluate(
                "() => new Promise((done) => requestAnimationFrame(() => done(performance.now() - began)))"
            )
        )
    assert min(took) < 200, "a message comes every 200 ms; on a busy machine some take longer"


def test_text_of_a_node_is_shown_on_it_once(canvas: Page, workflow: Json) -> None:
    canvas.evaluate(LOAD, workflow)
    for kind in ("LoadDataset", "CaptionImages", "CompareBaseline"):
        number = str(node_of(workflow, kind)["id"])
        output = {"text": [f"{kind} says"]}
        send(canvas, "executed", node=number, display_node=number, prompt_id="p", output=output)
    shown = [box.text_content() for box in canvas.locator(".in-graph-lora-text").all()]
    # Compare Baseline shows its report among its pictures.
    assert sorted(shown) == ["CaptionImages says", "LoadDataset says"]


def test_what_is_of_another_node_or_workflow_is_ignored(canvas: Page, workflow: Json) -> None:
    canvas.evaluate(LOAD, workflow)
    train = node_of(workflow, "TrainLoRA")["id"]
    for number in (node_of(workflow, "LoadDataset")["id"], 4711, "1:2", None):
        progress(canvas, number, [[1, 1.0, 1e-4]])
    progress(canvas, train, [[1, 1.0, 1e-4]], workflow="another")
    progress(canvas, train, [[1, 1.0, 1e-4]], workflow="")
    assert canvas.locator(PANEL).count() == 0
    progress(canvas, train, [[1, 1.0, 1e-4]])
    assert canvas.locator(PANEL).count() == 1
    assert canvas.complaints == []


SEARCHED = {
    "lora": ["Train LoRA (In-Graph)", "Apply LoRA", "Evaluate LoRA"],
    "train": ["Train LoRA (In-Graph)", "Plan Training"],
    "训练": ["Train LoRA (In-Graph)", "Train Optimizer"],
    "dataset": ["Load Dataset (In-Graph)", "Join Datasets", "Dataset Report"],
    "打标": ["Caption Images"],
    "dreambooth": ["Train LoRA (In-Graph)", "Prior Preservation"],
}


def opened_search(canvas: Page) -> Any:
    """The canvas takes two clicks on a busy machine for two single ones, as it does with a slow hand."""
    from playwright.sync_api import TimeoutError as NotThere  # noqa: PLC0415 - an optional package

    search = canvas.locator("input:focus")
    for _ in range(10):
        canvas.locator("#graph-canvas").dblclick(position={"x": 900, "y": 500})
        with contextlib.suppress(NotThere):
            search.wait_for(timeout=5000)
            return search
    raise AssertionError("no double click opened the search")


@pytest.mark.parametrize("canvas", ["classic"], indirect=True)
def test_the_node_search_finds_ours_and_tells_them_from_those_of_comfyui(canvas: Page) -> None:
    canvas.evaluate("() => app.graph.clear()")
    search = opened_search(canvas)
    shown = "(titles) => titles.every((title) => document.body.innerText.includes(title))"
    for text, titles in SEARCHED.items():
        search.fill(text)
        canvas.wait_for_function(shown, arg=titles)
    assert "in-graph-lora" in canvas.evaluate("() => document.body.innerText")
