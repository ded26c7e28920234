"""The Runs panel, Load Run and Compare Baseline, by real clicks on runs that a helper has written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from ..live.test_training import graph, pictures  # noqa: F401 - a fixture
from ..past_runs import write_report, write_run
from ..unit.test_sweep import job
from .page import open_prompt, queue

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.web, pytest.mark.slow]
Json = dict[str, Any]

RUN = "20261124-120000"
TAB = "role=button[name=/^Training runs/]"  # its class is another one in newer pages
SEND = "([name, detail]) => { (app.api ?? window.comfyAPI.api.api).dispatchCustomEvent(name, detail); }"
CLEAR = "() => { app.graph.clear(); }"
ADD = """([kind, x, y]) => {
    const node = LiteGraph.createNode(kind);
    node.pos = [x, y];
    app.graph.add(node);
    return String(node.id);
}"""
NODES = """() => app.graph.nodes.map((node) => ({
    kind: node.comfyClass,
    widgets: Object.fromEntries((node.widgets ?? []).map((w) => [w.name, w.value])),
    inputs: (node.inputs ?? []).filter((slot) => slot.link != null && !slot.widget).map((slot) => slot.name),
}))"""
CHOICES = """([kind, name]) => app.graph.nodes.find((node) => node.comfyClass === kind)
    .widgets.find((w) => w.name === name).options.values"""


@pytest.fixture
def runs(server) -> Iterator[Path]:
    """The folder of runs, emptied afterwards."""
    folder = server.base / "output" / "in-graph-lora"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def loras(server) -> Iterator[Path]:
    """A file toy.safetensors among ComfyUI's LoRAs."""
    folder = server.base / "output" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.safetensors").write_bytes(b"")
    yield folder
    (folder / "toy.safetensors").unlink()


def refresh_lists(page: Page, kind: str, value: str) -> None:
    """As the server's event does, until a kind of node has a value among its choices."""
    page.evaluate(SEND, ["in_graph_lora.files", {}])
    known = "([k, v]) => JSON.stringify(LiteGraph.registered_node_types[k].nodeData.input).includes(v)"
    page.wait_for_function(known, arg=[kind, value])


def row(page: Page, run: str) -> Locator:
    return page.locator(f'.igl-run[data-run="{run}"]')


def open_panel(page: Page) -> Locator:
    page.evaluate(CLEAR)
    page.locator(TAB).click()
    panel = page.locator(".igl-runs")
    panel.wait_for()
    return panel


def nodes(page: Page, kind: str) -> list[Json]:
    return [node for node in page.evaluate(NODES) if node["kind"] == kind]


def test_the_panel_shows_runs_their_curves_and_what_differs(canvas: Page, runs: Path) -> None:
    write_run(runs, "toy", rank=4, age=60)
    write_run(runs, "style", rank=32, age=5, run="20261124-130000")
    write_run(runs, "empty", every=0, pictures=False)
    job().write(runs / "jobs" / "night")
    panel = open_panel(canvas)
    jobs = panel.locator(".igl-jobs")
    jobs.get_by_text("Jobs: 1 waiting").click()
    assert jobs.locator("li").inner_text() == "night · waiting"
    row(canvas, f"toy/{RUN}").locator("path").first.wait_for(state="attached")
    assert "3 runs" in panel.inner_text()
    order = [r.get_attribute("data-run") for r in canvas.locator(".igl-run").all()]
    assert order == [f"empty/{RUN}", "style/20261124-130000", f"toy/{RUN}"]
    assert "2026-11-24 12:00 · step 40/40 · finished" in row(canvas, f"toy/{RUN}").inner_text()
    assert "no checkpoint" in row(canvas, f"empty/{RUN}").inner_text()
    picture = row(canvas, f"toy/{RUN}").locator("img")
    canvas.wait_for_function("image => image.naturalWidth === 64", arg=picture.element_handle())

    row(canvas, f"toy/{RUN}").get_by_label("compare").check()
    canvas.locator(".igl-chart path").wait_for(state="attached")
    assert canvas.locator(".igl-table").count() == 0
    row(canvas, "style/20261124-130000").get_by_label("compare").check()
    canvas.locator(".igl-table").wait_for()
    assert canvas.locator(".igl-chart path").count() == 2
    table = [line.split("\t") for line in canvas.locator(".igl-table").inner_text().splitlines()]
    assert ["adapter.rank", "4", "32"] in table
    assert not any(line[0] == "steps" for line in table), "what is the same is left out"
    row(canvas, "style/20261124-130000").get_by_label("compare").uncheck()
    canvas.locator(".igl-table").wait_for(state="detached")

    row(canvas, f"toy/{RUN}").get_by_title("Previews at full size").click()
    gallery = canvas.locator("dialog.igl-full")
    assert "step 40 · a toy" in gallery.inner_text()
    canvas.keyboard.press("ArrowLeft")
    assert "step 30 · 一个玩具" in gallery.inner_text()
    canvas.keyboard.press("Escape")
    gallery.wait_for(state="detached")
    assert canvas.complaints == []


def test_a_run_is_deleted_after_asking_and_not_while_it_is_trained(canvas: Page, runs: Path) -> None:
    from in_graph_lora.trainer.runs.in_use import in_use

    folder = write_run(runs, "toy").path
    panel = open_panel(canvas)
    delete = row(canvas, f"toy/{RUN}").get_by_role("button", name="Delete…")
    delete.click()
    dialog = canvas.locator("dialog.igl-ask")
    assert f"toy/{RUN}" in dialog.inner_text()
    assert "output/loras/toy.safetensors stays" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    assert folder.exists()

    with in_use(folder):
        delete.click()
        dialog.get_by_role("button", name="Delete").click()
        panel.get_by_text("is being trained; stop it first").wait_for()
    assert folder.exists()

    row(canvas, f"toy/{RUN}").get_by_role("button", name="Delete…").click()
    dialog.get_by_role("button", name="Delete").click()
    panel.get_by_text("is deleted").wait_for()
    row(canvas, f"toy/{RUN}").wait_for(state="detached")
    assert not folder.exists()


def test_the_cache_is_cleared_after_asking(canvas: Page, runs: Path) -> None:
    entry = runs / "cache" / "ab" / f"{'ab' * 16}.safetensors"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"x" * 5_000_000)
    panel = open_panel(canvas)
    line = panel.locator(".igl-cache")
    line.get_by_text("Encoded pictures and captions: 4.8 MB").wait_for()
    clear = line.get_by_role("button", name="Clear cache…")
    clear.click()
    dialog = canvas.locator("dialog.igl-ask")
    assert "4.8 MB" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    assert entry.exists()

    clear.click()
    dialog.get_by_role("button", name="Clear cache").click()
    panel.get_by_text("The cache is cleared: 4.8 MB are free again.").wait_for()
    line.wait_for(state="hidden")
    assert not entry.exists()
    assert canvas.complaints == []


def test_a_runs_settings_go_into_a_new_or_the_selected_train_lora(canvas: Page, runs: Path) -> None:
    from in_graph_lora.trainer.config import OptimizerConfig

    wishes = OptimizerConfig(name="lion", learning_rate=3e-5, eps=1e-6)
    write_run(runs, "toy", rank=8, steps=30, optimizer=wishes)
    panel = open_panel(canvas)
    settings = row(canvas, f"toy/{RUN}").get_by_role("button", name="Settings")
    settings.click()
    panel.get_by_text("are in a new Train LoRA").wait_for()
    assert "Not set: eps 1e-06 of the optimizer" in panel.inner_text()
    (train,) = nodes(canvas, "TrainLoRA")
    assert {k: train["widgets"][k] for k in ("steps", "rank", "learning_rate", "name")} == {
        "steps": 30, "rank": 8, "learning_rate": 3e-5, "name": "toy",
    }  # fmt: skip
    assert set(train["inputs"]) == {"optimizer", "preview"}
    assert nodes(canvas, "TrainOptimizer")[0]["widgets"]["optimizer"] == "lion"
    assert nodes(canvas, "TrainPreview")[0]["widgets"]["prompts"] == "a toy\n一个玩具"

    canvas.evaluate("""() => {
        const train = app.graph.nodes.find((node) => node.comfyClass === "TrainLoRA");
        train.widgets.find((w) => w.name === "rank").value = 99;
        app.canvas.selectNode(train);
    }""")
    settings.click()
    panel.get_by_text("are in the selected Train LoRA").wait_for()
    (train,) = nodes(canvas, "TrainLoRA")
    assert train["widgets"]["rank"] == 8
    assert len(nodes(canvas, "TrainOptimizer")) == 1, "the connected node is set, no second one is made"
    assert canvas.complaints == []


def test_a_runs_lora_goes_into_a_new_apply_lora(canvas: Page, runs: Path, loras: Path) -> None:
    write_run(runs, "toy", age=5)
    write_run(runs, "stopped", finished=False)
    panel = open_panel(canvas)
    refresh_lists(canvas, "ApplyLoRA", "toy.safetensors")
    row(canvas, f"toy/{RUN}").get_by_role("button", name="Apply LoRA").click()
    panel.get_by_text("Apply LoRA with toy.safetensors is on the canvas").wait_for()
    (apply,) = nodes(canvas, "ApplyLoRA")
    assert apply["widgets"]["lora_name"] == "toy.safetensors"
    row(canvas, f"stopped/{RUN}").get_by_role("button", name="Apply LoRA").click()
    panel.get_by_text("since the run has not ended").wait_for()
    assert nodes(canvas, "ApplyLoRA")[1]["inputs"] == ["lora"]
    assert nodes(canvas, "LoadRun")[0]["widgets"]["run"] == f"stopped/{RUN}"


def test_500_runs_scroll_with_few_rows_in_the_page(canvas: Page, runs: Path) -> None:
    first = write_run(runs, "toy", run="r000", steps=20, pictures=False).path
    for i in range(1, 500):
        shutil.copytree(first, runs / "toy" / f"r{i:03d}", copy_function=shutil.copy)
    asked: list[str] = []
    canvas.on("request", lambda request: asked.append(request.url))
    panel = open_panel(canvas)
    panel.get_by_text("500 runs").wait_for()
    listing = canvas.locator(".igl-list")
    worst = listing.evaluate("""async (list) => {
        let worst = 0;
        for (let i = 0; i <= 60; i++) {
            const before = performance.now();
            list.scrollTop = (list.scrollHeight * i) / 60;
            await new Promise(requestAnimationFrame);
            worst = Math.max(worst, document.querySelectorAll(".igl-run").length);
        }
        return worst;
    }""")
    assert worst < 40
    canvas.locator(".igl-run").last.locator("path").first.wait_for(state="attached")
    details = [url for url in asked if re.search(r"/runs/toy/", url)]
    assert len(details) < 200, "what is scrolled past is not read"
    shown = {r.get_attribute("data-run") for r in canvas.locator(".igl-run").all()}
    assert f"toy/{sorted(p.name for p in (runs / 'toy').iterdir())[0]}" in shown or len(shown) > 5


def test_load_run_shows_its_steps_and_a_click_chooses_one(canvas: Page, runs: Path) -> None:
    toy = write_run(runs, "toy", age=60)
    write_report(toy, 20)
    write_run(runs, "style", age=5, steps=20)
    write_run(runs, "empty", every=0)
    canvas.evaluate(CLEAR)
    refresh_lists(canvas, "LoadRun", f"style/{RUN}")
    canvas.evaluate(ADD, ["LoadRun", 300, 150])
    steps = canvas.locator(".igl-step")
    steps.first.wait_for()
    assert canvas.evaluate(CHOICES, ["LoadRun", "run"]) == [f"style/{RUN}", f"toy/{RUN}"]
    assert [s.get_attribute("data-step") for s in steps.all()] == ["10", "20"]
    chosen = canvas.locator(".igl-step[aria-selected=true]")
    assert chosen.get_attribute("data-step") == "20", "0 is the newest"

    canvas.get_by_role("button", name="Choose a run…").click()
    row(canvas, f"toy/{RUN}").wait_for()
    assert canvas.locator(".igl-choose .igl-run").count() == 2
    row(canvas, f"toy/{RUN}").get_by_title("Choose").click()
    canvas.wait_for_function("() => document.querySelectorAll('.igl-step').length === 4")
    assert [s.get_attribute("data-step") for s in steps.all() if "★" in s.inner_text()] == ["20"]
    canvas.locator('.igl-step[data-step="30"]').click()
    (node,) = nodes(canvas, "LoadRun")
    assert (node["widgets"]["run"], node["widgets"]["step"]) == (f"toy/{RUN}", 30)
    assert chosen.get_attribute("data-step") == "30"
    saved = canvas.evaluate("() => app.graph.serialize().nodes[0].widgets_values")
    assert saved == [f"toy/{RUN}", 30], "what is shown saves no value"

    canvas.locator('.igl-step[data-step="30"]').dblclick()
    assert "step 30 · a toy" in canvas.locator("dialog.igl-full").inner_text()
    canvas.keyboard.press("Escape")
    assert canvas.complaints == []


def test_new_files_are_in_the_lists_without_a_reload(canvas: Page, runs: Path, client, server) -> None:
    """The server's event, as Train LoRA sends it when a run ends."""
    canvas.evaluate(CLEAR)
    for kind in ("LoraLoader", "ApplyLoRA"):
        canvas.evaluate(ADD, [kind, 300, 150])
    assert "late.safetensors" not in json.dumps(canvas.evaluate(CHOICES, ["LoraLoader", "lora_name"]))
    late = server.base / "output" / "loras" / "late.safetensors"
    late.parent.mkdir(parents=True, exist_ok=True)
    late.write_bytes(b"")
    try:
        canvas.evaluate(SEND, ["in_graph_lora.files", {}])
        for kind in ("LoraLoader", "ApplyLoRA"):
            listed = "([k, n]) => (" + CHOICES + ")([k, n]).includes('late.safetensors')"
            canvas.wait_for_function(listed, arg=[kind, "lora_name"], timeout=10_000)
        canvas.evaluate(ADD, ["LoraLoader", 300, 600])
        assert canvas.evaluate("""() => app.graph.nodes.at(-1).widgets
            .find((w) => w.name === "lora_name").options.values.includes("late.safetensors")""")
    finally:
        late.unlink()


def drawn(server) -> list[Json]:
    """Two prompts at three strengths in the temp folder, each of a colour of its own."""
    folder = server.base / "temp"
    folder.mkdir(exist_ok=True)
    out = []
    for row_number, prompt in enumerate(("a toy", "一个玩具 <b>")):
        for column, strength in enumerate((0, 0.5, 1)):
            name = f"cmp_{row_number}{column}.png"
            pixels = np.full((96, 128, 3), (60 + 80 * column, 60 + 120 * row_number, 120), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            about = {"prompt": prompt, "seed": "18446744073709551615", "strength": strength}
            out.append({**about, "filename": name, "subfolder": "", "type": "temp"})
    return out


REPORT = (
    "## Comparison\n\nTwo pictures.\n\n| prompt | seed | without LoRA |\n|---|---|---|\n| a toy | 1 | 0.00 |"
)


def test_compare_baseline_shows_its_pictures_with_a_divider(canvas: Page, server) -> None:
    canvas.evaluate(CLEAR)
    number = canvas.evaluate(ADD, ["CompareBaseline", 250, 60])
    output = {"comparison": drawn(server), "text": [REPORT]}
    canvas.evaluate(
        SEND, ["executed", {"node": number, "display_node": number, "prompt_id": "p", "output": output}]
    )
    divider = canvas.locator(".igl-divider")
    divider.wait_for()
    canvas.wait_for_function("() => document.querySelector('.igl-divider img').naturalWidth === 128")
    canvas.wait_for_timeout(300)
    assert divider.locator(".igl-label").all_inner_texts() == ["without LoRA", "LoRA × 1"]
    box = divider.bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(128 / 96, rel=0.05)

    middle = box["y"] + box["height"] / 2
    position = canvas.evaluate("() => [...app.graph.nodes[0].pos]")
    canvas.mouse.move(box["x"] + box["width"] / 2, middle)
    canvas.mouse.down()
    canvas.mouse.move(box["x"] + box["width"] / 4, middle, steps=5)
    canvas.mouse.up()
    assert int(divider.get_attribute("aria-valuenow") or 0) == pytest.approx(25, abs=2)
    assert canvas.evaluate("() => [...app.graph.nodes[0].pos]") == position, "the node is not dragged"
    divider.focus()
    canvas.keyboard.press("ArrowRight")
    canvas.keyboard.press("ArrowRight")
    assert int(divider.get_attribute("aria-valuenow") or 0) == pytest.approx(29, abs=2)
    canvas.keyboard.press("ArrowDown")
    assert (
        "一个玩具 <b> · seed 18446744073709551615"
        in canvas.locator(".igl-comparison .igl-caption").inner_text()
    )

    canvas.locator(".igl-strip tr").nth(1).locator("button").nth(1).click()
    assert divider.locator(".igl-label").all_inner_texts()[1] == "LoRA × 0.5"
    assert "cmp_01.png" in (divider.locator("img").first.get_attribute("src") or "")
    assert canvas.locator(".igl-report td").all_inner_texts() == ["a toy", "1", "0.00"]
    assert "#" not in canvas.locator(".igl-report").inner_text()

    box = divider.bounding_box()
    assert box is not None
    canvas.mouse.click(box["x"] + 20, box["y"] + box["height"] - 20)
    large = canvas.locator("dialog.igl-full .igl-divider")
    large.wait_for()
    assert (large.bounding_box() or {"width": 0})["width"] > 2 * box["width"]
    canvas.keyboard.press("Escape")
    canvas.locator("dialog").wait_for(state="detached")
    assert len(canvas.evaluate("() => app.graph.serialize().nodes[0].widgets_values")) == 14
    assert canvas.complaints == []


def test_the_divider_follows_a_finger(canvas: Page, server) -> None:
    canvas.evaluate(CLEAR)
    number = canvas.evaluate(ADD, ["CompareBaseline", 250, 60])
    output = {"comparison": drawn(server), "text": [REPORT]}
    canvas.evaluate(
        SEND, ["executed", {"node": number, "display_node": number, "prompt_id": "p", "output": output}]
    )
    divider = canvas.locator(".igl-divider")
    divider.wait_for()
    canvas.wait_for_timeout(500)
    box = divider.bounding_box()
    assert box is not None
    touch = canvas.context.new_cdp_session(canvas)

    def send(kind: str, share: float) -> None:
        points = [] if kind == "touchEnd" else [{"x": box["x"] + share * box["width"], "y": box["y"] + 30}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", 0.5)
    for share in (0.55, 0.65, 0.75):
        send("touchMove", share)
    send("touchEnd", 0.75)
    assert int(divider.get_attribute("aria-valuenow") or 0) == pytest.approx(75, abs=3)


@pytest.mark.usefixtures("tiny_checkpoint", "runs")
def test_a_real_training_is_in_every_list_and_compared_when_it_has_ended(
    canvas: Page,
    pictures: str,  # noqa: F811
    request: pytest.FixtureRequest,
) -> None:
    name = f"fresh_{'classic' if 'classic' in request.node.name else 'vue'}"
    wanted = {
        number: node
        for number, node in graph(pictures, steps=2, name=name).items()
        if number in ("1", "2", "3", "4", "5", "11")
    }
    open_prompt(canvas, wanted, "fresh")
    queue(canvas)
    divider = canvas.locator(".igl-divider")
    divider.wait_for(state="attached", timeout=120_000)
    compare = "app.graph.nodes.find((node) => node.comfyClass === 'CompareBaseline')"
    canvas.evaluate(f"() => {{ app.canvas.centerOnNode({compare}); }}")
    divider.wait_for()
    canvas.wait_for_function("() => document.querySelector('.igl-divider img').naturalWidth === 64")
    assert "aawxbc figurine · seed 1" in canvas.locator(".igl-comparison .igl-caption").inner_text()
    listed = "([k, n]) => (" + CHOICES + f")([k, n]).includes('{name}.safetensors')"
    canvas.wait_for_function(listed, arg=["ApplyLoRA", "lora_name"], timeout=20_000)

    canvas.locator(TAB).click()
    mine = canvas.locator(f'.igl-run[data-run^="{name}/"]')
    mine.locator("path").first.wait_for(state="attached")
    assert "step 2/2 · finished" in mine.inner_text()
    mine.get_by_role("button", name="Apply LoRA").click()
    canvas.get_by_text(f"Apply LoRA with {name}.safetensors is on the canvas").wait_for()
    assert nodes(canvas, "ApplyLoRA")[-1]["widgets"]["lora_name"] == f"{name}.safetensors"
    assert canvas.complaints == []
