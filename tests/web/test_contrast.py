"""Text of ours can be read in ComfyUI's dark and light palettes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .page import open_prompt
from .test_canvas import progress, send

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.web, pytest.mark.slow]

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
PALETTE = """async (id) => {
    await app.extensionManager.setting.set('Comfy.ColorPalette', id);
    return getComputedStyle(document.documentElement).getPropertyValue('--comfy-menu-bg');
}"""


TRAINED = {
    "held_out": [[2, 0.2]],
    "notices": ["a remark"],
    "pace": 0.5,
    "elapsed": 20,
    "left": 30,
    "measured": True,
}


def show(page: Page, kind: str, inputs: dict[str, Any]) -> str:
    """Puts the node on the canvas with something to read on it; returns what its own elements are below."""
    open_prompt(page, {"1": {"class_type": kind, "inputs": inputs}}, kind)
    if kind == "TrainLoRA":
        progress(page, 1, [[1, 0.1, 1e-4], [2, 0.2, 1e-4]], **TRAINED)
        return ".in-graph-lora-run"
    text = "2 images\n\n⚠ small\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    send(page, "executed", node="1", display_node="1", prompt_id="p", output={"text": [text]})
    return ".igl-load-dataset"


@pytest.mark.parametrize("palette", ["dark", "light"])
@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        (
            "LoadDataset",
            {"folder": "", "resolution": 256, "repeats": 1},
            {"Choose a folder…", "2 images", "1"},
        ),
        ("TrainLoRA", {"name": "seen", "steps": 10}, {"Stop and keep", "a remark"}),
    ],
)
def test_text_has_contrast_in_both_palettes(
    canvas: Page, kind: str, inputs: dict[str, Any], words: set[str], palette: str
) -> None:
    """At least 4.5 to 1, as WCAG 2 asks for (relative luminance: sRGB)."""
    canvas.evaluate(PALETTE, palette)
    try:
        selector = show(canvas, kind, inputs)
        canvas.locator(selector).first.wait_for()
        canvas.wait_for_timeout(500)
        found = canvas.evaluate(CONTRAST, selector)
        assert {text for text, _ in found} >= words
        assert [(text, round(ratio, 1)) for text, ratio in found if ratio < 4.5] == []
    finally:
        canvas.evaluate(PALETTE, "dark")


# The farthest from the node's colour of all pixels of the chart: its curves have colours, its axes are text.
DRAWN = """() => {
    const chart = document.querySelector('.in-graph-lora-run .uplot canvas');
    const { data } = chart.getContext('2d').getImageData(0, 0, chart.width, chart.height);
    const light = (r, g, b) => [r, g, b].map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const found = [];
    for (let i = 0; i < data.length; i += 4) {
        const grey = Math.max(...data.slice(i, i + 3)) - Math.min(...data.slice(i, i + 3)) < 12;
        if (data[i + 3] > 250 && grey) found.push(light(data[i], data[i + 1], data[i + 2]));
    }
    return [Math.min(...found), Math.max(...found)];
}"""


@pytest.mark.parametrize(("palette", "dark_ink"), [("dark", False), ("light", True)])
def test_the_axes_of_the_chart_are_drawn_in_the_palettes_ink(
    canvas: Page, palette: str, dark_ink: bool
) -> None:
    canvas.evaluate(PALETTE, palette)
    try:
        show(canvas, "TrainLoRA", {"name": "axes", "steps": 10})
        canvas.locator(".in-graph-lora-run .uplot canvas").wait_for()
        canvas.wait_for_timeout(500)
        darkest, lightest = canvas.evaluate(DRAWN)
        assert (darkest < 0.1) if dark_ink else (lightest > 0.5)
    finally:
        canvas.evaluate(PALETTE, "dark")
