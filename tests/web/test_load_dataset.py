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
    (root / "frog_1").mkdir(parents=True)
    (root / "any").mkdir()
    for i, size in enumerate([(300, 300), (330, 220), (64, 64)]):
        Image.effect_noise(size, 60 + i).convert("RGB").save(root / "frog_1" / f"{i}.png")
    Image.effect_noise((300, 300), 90).convert("RGB").save(root / "any" / "c.png")
    (root / "frog_1" / "torn_x.png").write_bytes(b"")
    yield root
    shutil.rmtree(root)


def test_a_folder_is_chosen_by_clicks_and_the_node_runs_alone(canvas: Page, folders: Path) -> None:
    inputs = {"folder": "", "resolution": 256, "repeats": 1, "class_folder": "clicked/any"}
    open_prompt(canvas, {"1": {"class_type": "LoadDataset", "inputs": inputs}}, "choose")
    canvas.evaluate(MARGIN)
    canvas.get_by_role("button", name="Choose a folder…").click()
    dialog = canvas.locator("dialog.igl-choose-folder")
    dialog.get_by_label("Filter").fill("FROG")
    row = dialog.locator(".igl-folder")
    dialog.locator(".igl-folder[data-folder='clicked/frog_1']").wait_for()
    assert [r.get_attribute("data-folder") for r in row.all()] == ["clicked/frog_1"]
    assert "4 pictures" in row.inner_text()
    row.click()
    dialog.wait_for(state="detached")
    assert canvas.evaluate(FOLDER) == "clicked/frog_1"

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
    assert dialog.locator(".igl-folder").first.get_attribute("data-folder") == "clicked/frog_1"
    canvas.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert canvas.complaints == []  # type: ignore[attr-defined]
