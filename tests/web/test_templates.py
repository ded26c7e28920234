"""The example workflows as they open from ComfyUI's Templates: in order, readable, no wire behind a node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .page import open_workflow

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.web, pytest.mark.slow]
READABLE = 8 / 14
"""Below this scale the classic canvas draws no text: a font of 14 is then smaller than 8 pixels."""

WIRES = "(n) => [...app.graph.links.values()].filter((link) => link.path).length === n"
# Each wire drawn by itself, and what of it is seen where a node lies that it does not belong to.
BEHIND = """() => {
    const boxes = app.graph.nodes.map((n) => [n, n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]);
    const [left, top] = [1, 2].map((i) => Math.min(...boxes.map((box) => box[i])));
    const [right, bottom] = [1, 2].map((i) => Math.max(...boxes.map((box) => box[i] + box[i + 2])));
    const all = new OffscreenCanvas(right - left, bottom - top);
    const drawn = all.getContext('2d', { willReadFrequently: true });
    drawn.translate(-left, -top);
    drawn.lineWidth = 2;
    const found = [];
    for (const link of app.graph.links.values()) {
        drawn.clearRect(left, top, right - left, bottom - top);
        drawn.stroke(link.path);
        for (const [node, x, y, width, height] of boxes) {
            if (node.id === link.origin_id || node.id === link.target_id) continue;
            const inner = drawn.getImageData(x - left + 3, y - top + 3, width - 6, height - 6).data;
            if (new Uint32Array(inner.buffer).some((pixel) => pixel !== 0)) found.push([link.id, node.type]);
        }
    }
    return found;
}"""
BOXES = """() => ({
    nodes: app.graph.nodes.map((n) => [n.type, n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]),
    groups: app.graph.groups.map((g) => [g.title, g.pos[0], g.pos[1], g.size[0], g.size[1]]),
})"""
Box = list[Any]


def overlap(a: Box, b: Box) -> bool:
    return a[1] < b[1] + b[3] and b[1] < a[1] + a[3] and a[2] < b[2] + b[4] and b[2] < a[2] + a[4]


def inside(a: Box, b: Box) -> bool:
    return b[1] <= a[1] and a[1] + a[3] <= b[1] + b[3] and b[2] <= a[2] and a[2] + a[4] <= b[2] + b[4]


@pytest.fixture(
    params=["first_lora", "subject", "compare_steps", "recipe", "textual_inversion", "custom_diffusion"]
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_no_wire_runs_behind_a_node(same_canvas: Page, name: str, repo_root: Path) -> None:
    workflow = json.loads((repo_root / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    open_workflow(same_canvas, workflow, name)
    same_canvas.wait_for_function(WIRES, arg=len(workflow["links"]))
    assert same_canvas.evaluate(BEHIND) == []

    in_the_way = ("LoadDataset",) if name == "recipe" else ("TrainLoRA", "EvaluateLoRA")
    moved = next(node for node in workflow["nodes"] if node["type"] in in_the_way)
    moved["pos"] = [moved["pos"][0], 0]  # the check above is able to fail
    open_workflow(same_canvas, workflow, f"{name}_moved")
    same_canvas.wait_for_function(f"() => ({BEHIND})().length > 0")


def test_nodes_lie_in_their_groups_and_beside_each_other(
    same_canvas: Page, name: str, repo_root: Path
) -> None:
    workflow = json.loads((repo_root / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    open_workflow(same_canvas, workflow, name)
    same_canvas.wait_for_timeout(1000)  # Nodes 2.0 measures its nodes
    boxes = same_canvas.evaluate(BOXES)
    nodes, groups = boxes["nodes"], boxes["groups"]
    assert [g[0][0] for g in groups] == [str(i + 1) for i in range(len(groups))], "in order"
    for i, a in enumerate(nodes):
        assert [b[0] for b in nodes[i + 1 :] if overlap(a, b)] == [], a[0]
        homes = [g[0] for g in groups if inside(a, g)]
        assert len(homes) == (a[0] != "MarkdownNote"), a[0]
        assert [g[0] for g in groups if overlap(a, g)] == homes, a[0]
    assert not any(overlap(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :])


def test_templates_list_the_first_lora_first_and_open_it_readable(canvas: Page) -> None:
    canvas.set_viewport_size({"width": 1920, "height": 1080})
    canvas.locator(".templates-tab-button").first.click()
    dialog = canvas.get_by_role("dialog")
    dialog.get_by_text("in-graph-lora", exact=True).first.click()
    cards = canvas.locator('[data-testid^="template-workflow-"]')
    canvas.wait_for_function(
        "() => document.querySelectorAll('[data-testid^=template-workflow-]').length === 7", timeout=60_000
    )
    order = [card.get_attribute("data-testid") for card in cards.all()]
    names = [
        "first_lora",
        "compare_steps",
        "custom_diffusion",
        "recipe",
        "subject",
        "textual_inversion",
        "wan22_two_stages",
    ]
    assert order == [f"template-workflow-{n}" for n in names]
    cards.first.click()
    canvas.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'TrainLoRA')")
    canvas.wait_for_timeout(1000)
    assert canvas.evaluate("() => app.canvas.ds.scale") > READABLE + 0.15
    assert canvas.complaints == []  # type: ignore[attr-defined]
