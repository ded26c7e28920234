"""Captions edited on the canvas by real clicks and keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..live.test_caption_routes import graph, make_folder
from .conftest import post
from .page import READY, open_prompt, queue

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from workbench.dev.server import Server

pytestmark = [pytest.mark.web, pytest.mark.slow]
COUNT = 500


@pytest.fixture
def folder(server: Server, tmp_path: Path) -> Path:
    return make_folder(server.base / "input" / tmp_path.name, COUNT)


def saved(page: Page) -> None:
    page.wait_for_function("() => /^All saved/.test(document.querySelector('.igl-saved')?.textContent)")


def test_500_captions_are_typed_replaced_filtered_undone_and_saved(canvas: Page, folder: Path) -> None:
    open_prompt(canvas, graph(folder.name), "captions")
    queue(canvas)
    edit = canvas.locator(".igl-load-dataset").get_by_role("button", name="Edit captions…")
    edit.wait_for(timeout=120_000)
    edit.click()
    dialog = canvas.locator("dialog.igl-captions-dialog")
    rows = dialog.locator(".igl-caption-row")
    rows.first.wait_for()
    assert rows.count() < 25, "only what is seen is in the page"
    first = dialog.get_by_label("000.jpg")
    assert first.evaluate("(area) => area === document.activeElement")

    # Typed, and saved by itself.
    first.press("End")
    canvas.keyboard.type(", grass")
    saved(canvas)
    assert (folder / "000.txt").read_text() == "ohwx, dog, number 0, grass\n"
    assert (folder / "000.txt.bak").read_text() == "ohwx, dog, number 0\n"
    canvas.wait_for_function("() => document.querySelector('.igl-caption-row img').naturalWidth === 96")

    # Arrows and Tab go to the next picture.
    canvas.keyboard.press("ArrowDown")
    assert dialog.get_by_label("001.jpg").evaluate("(area) => area === document.activeElement")
    canvas.keyboard.press("Tab")
    assert dialog.get_by_label("002.jpg").evaluate("(area) => area === document.activeElement")
    canvas.keyboard.type("X")
    canvas.keyboard.press("Control+s")
    saved(canvas)
    assert "X" in (folder / "002.txt").read_text()
    canvas.keyboard.press("Control+z")
    saved(canvas)
    assert (folder / "002.txt").read_text() == "ohwx, dog, number 2\n"

    # Counted before it is replaced; one undo takes all of it back.
    dialog.get_by_label("Find").fill("dog")
    dialog.get_by_label("Replace with").fill("cat")
    dialog.get_by_text(f"{COUNT} in {COUNT} captions").wait_for()
    dialog.get_by_role("button", name="Replace all").click()
    saved(canvas)
    assert {path.read_text().split(", ")[1] for path in folder.glob("*.txt")} == {"cat"}
    dialog.get_by_role("button", name="Undo").click()
    saved(canvas)
    assert {path.read_text().split(", ")[1] for path in folder.glob("*.txt")} == {"dog"}

    # A tag filters, and is removed everywhere.
    dialog.get_by_role("button", name="grass 1", exact=True).click()
    canvas.wait_for_function("() => document.querySelectorAll('.igl-caption-row').length === 1")
    dialog.get_by_role("button", name="Remove 'ohwx' from all captions").click()
    saved(canvas)
    assert not any("ohwx" in path.read_text() for path in folder.glob("*.txt"))
    dialog.get_by_role("button", name="grass 1", exact=True).click()

    # The last of 500 is reached by scrolling.
    dialog.locator(".igl-list").evaluate("(list) => { list.scrollTop = list.scrollHeight; }")
    dialog.get_by_label(f"{COUNT - 1}.jpg").fill("the last")
    assert rows.count() < 25

    # Escape saves and closes; Run uses what was saved.
    canvas.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    canvas.wait_for_timeout(1000)
    assert (folder / f"{COUNT - 1}.txt").read_text() == "the last\n"
    queue(canvas)
    canvas.wait_for_function(
        "() => document.body.innerText.includes('000.jpg: dog, number 0, grass')", timeout=120_000
    )
    assert canvas.complaints == []  # type: ignore[attr-defined]


OURS = "the file is empty (0 bytes); copy it again"
"""A sentence of ours, which is a caption here."""
CAPTIONS = {"dataset": ["1", 0], "method": "template", "class_word": "", "template": "{trigger}, {caption}"}
SHOW = """(kind) => {
    const node = app.graph.nodes.find((n) => n.type === kind);
    app.canvas.ds.scale = 0.7;
    app.canvas.ds.offset = [600 - node.pos[0], 150 - node.pos[1]];
    app.canvas.setDirty(true, true);
}"""

PLACE = """(id) => {
    const node = app.graph.getNodeById(id);
    const [x, y] = app.canvas.ds.convertOffsetToCanvas(node.pos);
    return [x, y, node.size[0] * app.canvas.ds.scale, node.size[1] * app.canvas.ds.scale];
}"""


def test_captions_are_edited_as_caption_nodes_left_them_and_said_as_they_are(
    canvas: Page, server: Server, tmp_path: Path
) -> None:
    folder = make_folder(server.base / "input" / tmp_path.name, 3)
    (folder / "002.txt").write_text(OURS)
    prompt = graph(folder.name)
    inputs = {**CAPTIONS, "trigger": "xyz", "on_existing": "overwrite"}
    prompt["4"] = {"class_type": "CaptionImages", "inputs": inputs}
    prompt["3"]["inputs"] |= {"dataset": ["4", 0], "replacements": "xyz, the file => the file"}
    post(f"{server.url}/settings/Comfy.Locale", '"zh"')
    try:
        canvas.reload(wait_until="domcontentloaded")
        canvas.wait_for_function(READY, timeout=120_000)
        open_prompt(canvas, prompt, "left")
        queue(canvas)
        boxes = canvas.locator(".igl-captions-node .in-graph-lora-text")
        boxes.nth(1).wait_for(state="attached", timeout=120_000)
        shown = boxes.all_inner_texts()
        assert any(f"002.jpg: xyz, {OURS}" in text for text in shown)
        assert any(f"002.jpg: {OURS}" in text and "3 条描述中改动了 1 条" in text for text in shown)

        for kind, caption, after in (
            ("CaptionImages", "xyz, ohwx, dog, number 0", "“已有描述时”为 overwrite"),
            ("EditCaptions", "xyz, ohwx, dog, number 1", "运行时使用新的描述"),
        ):
            canvas.evaluate(SHOW, kind)
            canvas.wait_for_timeout(300)
            number = 0 if kind == "CaptionImages" else 1
            before = {path.name: path.read_text() for path in folder.glob("*.txt")}
            node = canvas.evaluate("(kind) => app.graph.nodes.find((n) => n.type === kind).id", kind)
            click_edit(canvas, node)
            dialog = canvas.locator("dialog.igl-captions-dialog")
            area = dialog.get_by_label(f"00{number}.jpg")
            area.wait_for()
            assert area.input_value() == caption
            area.fill(f"by hand {number}")
            canvas.wait_for_function(
                "(after) => document.querySelector('.igl-saved').textContent.includes(after)", arg=after
            )
            canvas.keyboard.press("Escape")
            dialog.wait_for(state="detached")
            now = {path.name: path.read_text() for path in folder.glob("*.txt")}
            assert now == {**before, f"00{number}.txt": f"by hand {number}\n"}, "no other file is written"
        assert canvas.complaints == []  # type: ignore[attr-defined]
    finally:
        post(f"{server.url}/settings/Comfy.Locale", '"en"')


def click_edit(page: Page, node: int) -> None:
    """The button that lies on the node."""
    box = page.evaluate(PLACE, node)
    for button in page.get_by_role("button", name="编辑描述…").all():
        own = button.bounding_box()
        if own and box[0] < own["x"] < box[0] + box[2] and box[1] < own["y"] < box[1] + box[3] + 60:
            return button.click()
    raise AssertionError(f"no button on node {node}")
