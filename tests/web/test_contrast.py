"""Text of ours can be read in ComfyUI's dark and light palettes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from ..past_runs import write_run
from .page import open_prompt
from .test_canvas import progress, send
from .test_runs import RUN, TAB, open_panel, refresh_lists, row

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from workbench.dev.server import Server

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
            if (colour[3] === 1 || e.matches('dialog, .dom-widget, [data-node-id]')) break;
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
        told.push([element.textContent.slice(0, 40), (a + 0.05) / (b + 0.05), !element.disabled]);
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


def trained(page: Page) -> str:
    """Puts the node on the canvas with something to read on it; returns where its own elements are."""
    open_prompt(page, {"1": {"class_type": "TrainLoRA", "inputs": {"name": "seen", "steps": 10}}}, "train")
    progress(page, 1, [[1, 0.1, 1e-4], [2, 0.2, 1e-4]], **TRAINED)
    return ".in-graph-lora-run"


def loaded(page: Page) -> str:
    inputs = {"folder": "", "resolution": 256, "repeats": 1}
    open_prompt(page, {"1": {"class_type": "LoadDataset", "inputs": inputs}}, "load")
    text = "2 images\n\n⚠ small\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    send(page, "executed", node="1", display_node="1", prompt_id="p", output={"text": [text]})
    return ".igl-load-dataset"


def compared(page: Page) -> str:
    open_prompt(page, {"1": {"class_type": "CompareBaseline", "inputs": {"prompts": "a toy"}}}, "compare")
    at = {"filename": "none.png", "subfolder": "", "type": "temp", "prompt": "a toy", "seed": "1"}
    pictures = [{**at, "strength": 0}, {**at, "strength": 1}]
    text = "## Comparison\n\n| prompt | seed |\n|---|---|\n| a toy | 1 |\n\nEach number"
    output = {"text": [text], "comparison": pictures}
    send(page, "executed", node="1", display_node="1", prompt_id="p", output=output)
    return ".igl-comparison"


def past(page: Page) -> str:
    open_prompt(page, {"1": {"class_type": "LoadRun", "inputs": {"run": f"toy/{RUN}", "step": 0}}}, "past")
    page.locator(".igl-load-run .igl-step").first.wait_for()
    return ".igl-load-run"


def listed(page: Page) -> str:
    open_panel(page)
    row(page, f"toy/{RUN}").get_by_label("compare").check()
    page.locator(".igl-runs .igl-legend li").first.wait_for()
    return ".igl-runs"


def asked(page: Page) -> str:
    open_panel(page)
    row(page, f"toy/{RUN}").get_by_role("button", name="Delete…").click()
    page.locator("dialog.igl-ask").wait_for()
    return "dialog.igl-ask"


DESK = """async () => {
    const style = document.querySelector('link[href$="runs.css"]').href;
    const { openCaptions } = await import(new URL('caption_editor.mjs', style));
    const refused = { name: 'b.png', caption: 'x', refused: 'no file' };
    const pictures = [{ name: 'a.png', caption: 'a toy, red' }, refused];
    const fetch = async () => new Response(JSON.stringify({ pictures }));
    await openCaptions({ fetch, url: () => '' }, 'x', 'All saved.');
}"""


def edited(page: Page) -> str:
    page.evaluate(DESK)
    page.locator("dialog.igl-captions-dialog textarea").first.wait_for()
    page.get_by_role("button", name="red 1", exact=True).click()
    return "dialog.igl-captions-dialog"


SURFACES = {
    trained: {"Stop and keep", "a remark"},
    loaded: {"Choose a folder…", "2 images", "1"},
    compared: {"without LoRA", "Report", "a toy · seed 1", "Each number"},
    past: {"Choose a run…"},
    listed: {"toy", "Delete…", "Training runs"},
    asked: {"Delete", "Cancel"},
    edited: {"a.png", "red 1", "All saved.", "1 of 2 cannot be edited: no file"},
}


@pytest.fixture
def run(server: Server) -> Iterator[None]:
    folder = server.base / "output" / "in-graph-lora"
    shutil.rmtree(folder, ignore_errors=True)
    write_run(folder)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("palette", ["dark", "light"])
def test_text_has_contrast_in_both_palettes(canvas: Page, palette: str) -> None:
    """At least 4.5 to 1, as WCAG 2 asks for (relative luminance: sRGB)."""
    canvas.evaluate(PALETTE, palette)
    faint = {}
    try:
        refresh_lists(canvas, "LoadRun", f"toy/{RUN}")
        for surface, words in SURFACES.items():
            selector = surface(canvas)
            canvas.locator(selector).first.wait_for()
            canvas.wait_for_timeout(500)
            found = canvas.evaluate(CONTRAST, selector)
            assert {text for text, _, _ in found} >= words, surface.__name__
            faint |= {
                (surface.__name__, text): round(ratio, 1)
                for text, ratio, able in found
                if able and ratio < 4.5
            }
            canvas.keyboard.press("Escape")
            canvas.locator("dialog[open].igl").wait_for(state="detached")
            if canvas.locator(".igl-runs").count():
                canvas.locator(TAB).click()
        assert faint == {}
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
        trained(canvas)
        canvas.locator(".in-graph-lora-run .uplot canvas").wait_for()
        canvas.wait_for_timeout(500)
        darkest, lightest = canvas.evaluate(DRAWN)
        assert (darkest < 0.1) if dark_ink else (lightest > 0.5)
    finally:
        canvas.evaluate(PALETTE, "dark")
