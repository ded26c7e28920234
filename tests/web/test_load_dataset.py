"""Load Dataset on the canvas: its folder is chosen, it runs alone, and all that is there is seen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from .page import open_prompt

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.web, pytest.mark.slow]

FOLDER = "() => app.graph.nodes[0].widgets.find((w) => w.name === 'folder').value"
SELECT = "() => { app.canvas.selectNode(app.graph.nodes[0]); app.canvas.setDirty(true, true); }"
MARGIN = (
    "() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [300, 200]; app.canvas.setDirty(true, true); }"
)


@pytest.fixture
def folders(server) -> Iterator[Path]:
    root = server.base / "input" / "clicked"
    (root / "toy_1").mkdir(parents=True)
    (root / "any").mkdir()
    for i, size in enumerate([(300, 300), (330, 220), (64, 64)]):
        Image.effect_noise(size, 60 + i).convert("RGB").save(root / "toy_1" / f"{i}.png")
    Image.effect_noise((300, 300), 90).convert("RGB").save(root / "any" / "c.png")
    (root / "toy_1" / "torn_x.png").write_bytes(b"")
    yield root
    shutil.rmtree(root)


def test_a_folder_is_chosen_by_clicks_and_the_node_runs_alone(canvas: Page, folders: Path) -> None:
    inputs = {"folder": "", "resolution": 256, "repeats": 1, "class_folder": "clicked/any"}
    open_prompt(canvas, {"1": {"class_type": "LoadDataset", "inputs": inputs}}, "choose")
    canvas.evaluate(MARGIN)
    canvas.get_by_role("button", name="Choose a folder…").click()
    dialog = canvas.locator("dialog.igl-choose-folder")
    dialog.get_by_label("Filter").fill("TOY")
    row = dialog.locator(".igl-folder")
    dialog.locator(".igl-folder[data-folder='clicked/toy_1']").wait_for()
    assert [r.get_attribute("data-folder") for r in row.all()] == ["clicked/toy_1"]
    assert "4 pictures" in row.inner_text()
    row.click()
    dialog.wait_for(state="detached")
    assert canvas.evaluate(FOLDER) == "clicked/toy_1"

    canvas.evaluate(SELECT)
    canvas.get_by_test_id("execute-button").or_(
        canvas.get_by_label("Execute to selected output nodes")
    ).first.click()
    text = canvas.locator(".igl-load-dataset .in-graph-lora-text")
    text.wait_for(timeout=60_000)
    said = text.inner_text()
    assert "4 images · 3 of the subject, 1 of the class · 1 skipped · 2 buckets" in said
    assert "⚠ 1 picture is too small for the resolution and enlarged: 2.png (4.0 times)" in said
    cells = [[cell.inner_text() for cell in r.locator("td, th").all()] for r in text.locator("tr").all()]
    assert cells[0] == ["trained at", "of the subject", "of the class", "cut, on average"]
    assert ["256x256", "2", "1", "0%"] in cells
    assert ["torn_x.png", "skipped", "the file is empty (0 bytes); copy it again"] in cells

    canvas.get_by_role("button", name="Choose a folder…").click()
    dialog.locator(".igl-group").first.wait_for()
    groups = [g.inner_text() for g in dialog.locator(".igl-group").all()]
    assert groups == ["Recent", "In ComfyUI's input folder"]
    assert dialog.locator(".igl-folder").first.get_attribute("data-folder") == "clicked/toy_1"
    canvas.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert canvas.complaints == []  # type: ignore[attr-defined]


CONTRAST = """(selector) => {
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const nodeColour = rgba(getComputedStyle(document.documentElement)
        .getPropertyValue(LiteGraph.vueNodesMode ? '--component-node-background' : '--none').trim()
        || LiteGraph.NODE_DEFAULT_BGCOLOR);
    const behind = (element) => {
        const layers = [];
        for (let e = element; e; e = e.parentElement) {
            const colour = rgba(getComputedStyle(e).backgroundColor);
            if (colour[3] > 0) layers.push(colour);
            if (colour[3] === 1 || e.matches('.dom-widget, [data-node-id]')) break;
        }
        return layers.reduceRight((below, [r, g, b, a]) =>
            [r, g, b].map((v, i) => v * a + below[i] * (1 - a)), nodeColour.slice(0, 3));
    };
    const light = (colour) => colour.slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const told = [];
    for (const element of document.querySelectorAll(`${selector}, ${selector} *`)) {
        const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own) continue;
        const ink = light(rgba(getComputedStyle(element).color));
        const [a, b] = [ink, light(behind(element))].sort((x, y) => y - x);
        told.push([element.textContent.slice(0, 40), (a + 0.05) / (b + 0.05)]);
    }
    return told;
}"""
SEND = "([name, detail]) => { (app.api ?? window.comfyAPI.api.api).dispatchCustomEvent(name, detail); }"
PALETTE = """async (id) => {
    await app.extensionManager.setting.set('Comfy.ColorPalette', id);
    return getComputedStyle(document.documentElement).getPropertyValue('--comfy-menu-bg');
}"""


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_text_has_contrast_in_both_palettes(canvas: Page, palette: str) -> None:
    """At least 4.5 to 1, as WCAG 2 asks for (relative luminance: sRGB)."""
    canvas.evaluate(PALETTE, palette)
    try:
        inputs = {"folder": "", "resolution": 256, "repeats": 1}
        open_prompt(canvas, {"1": {"class_type": "LoadDataset", "inputs": inputs}}, palette)
        text = "2 images\n\n⚠ small\n\n| a | b |\n|---|---|\n| 1 | 2 |"
        detail = {"node": "1", "display_node": "1", "prompt_id": "p", "output": {"text": [text]}}
        canvas.evaluate(SEND, ["executed", detail])
        canvas.locator(".igl-load-dataset td").first.wait_for()
        found = canvas.evaluate(CONTRAST, ".igl-load-dataset")
        assert {t for t, _ in found} >= {"Choose a folder…", "2 images", "1"}
        assert [(t, round(ratio, 1)) for t, ratio in found if ratio < 4.5] == []
    finally:
        canvas.evaluate(PALETTE, "dark")
