"""Captions edited on the canvas by real clicks and keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..live.test_caption_routes import graph, make_folder
from .page import open_prompt, queue

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
    edit = canvas.get_by_role("button", name="Edit captions…")
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
