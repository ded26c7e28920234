"""ComfyUI's language is the language of our nodes, panels and sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..live.test_crash import graph
from .conftest import post
from .page import READY, open_prompt
from .test_canvas import PANEL, progress

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from workbench.dev.server import Server

pytestmark = [pytest.mark.web, pytest.mark.slow]
Json = dict[str, Any]

SPEAK = "(locale) => app.extensionManager.setting.set('Comfy.Locale', locale)"
TITLES = "() => Object.fromEntries(app.graph.nodes.map((node) => [node.comfyClass, node.title]))"
TRAIN = "app.graph.nodes.find((node) => node.type === 'TrainLoRA')"
LABELS = f"() => Object.fromEntries({TRAIN}.widgets.map((w) => [w.name, w.label]))"
OUTPUTS = f"() => {TRAIN}.outputs.map((slot) => slot.localized_name ?? slot.label)"


@pytest.fixture(autouse=True)
def english_again(server: Server) -> Iterator[None]:
    yield
    post(f"{server.url}/settings/Comfy.Locale", '"en"')


@pytest.fixture
def prompt(tiny_checkpoint: Path, tmp_path: Path) -> Json:
    """A graph whose folder is not there."""
    return graph(str(tmp_path / "missing"), **{"4": {"name": "words"}})


def test_nodes_panels_and_sentences_are_chinese_with_comfyui(
    canvas: Page, prompt: Json, repo_root: Path
) -> None:
    zh = json.loads((repo_root / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    canvas.evaluate(SPEAK, "zh")
    canvas.reload(wait_until="domcontentloaded")
    canvas.wait_for_function(READY, timeout=120_000)
    open_prompt(canvas, prompt, "words")

    titles = canvas.evaluate(TITLES)
    assert titles["TrainLoRA"] == "训练 LoRA（In-Graph）"  # ComfyUI has a 训练 LoRA
    assert titles["LoadDataset"] == "加载数据集（In-Graph）"
    labels = canvas.evaluate(LABELS)
    for name in ("steps", "learning_rate", "batch_size"):
        assert labels[name] == zh["TrainLoRA"]["inputs"][name]["name"], name
    assert canvas.evaluate(OUTPUTS) == [port["name"] for port in zh["TrainLoRA"]["outputs"].values()]
    if canvas.evaluate("LiteGraph.vueNodesMode"):
        canvas.get_by_text("学习率", exact=True).first.wait_for()

    canvas.get_by_role("button", name="训练记录").click()
    runs = canvas.locator(".igl-runs")
    runs.get_by_text("训练记录", exact=True).wait_for()
    runs.get_by_title("刷新列表").wait_for()
    canvas.get_by_role("button", name="训练记录").click()

    train = canvas.evaluate(f"() => {TRAIN}.id")
    progress(canvas, train, [[1, 0.1, 1e-4]], pace=0.5, elapsed=20, left=30, measured=True)
    panel = canvas.locator(PANEL)
    panel.get_by_role("button", name="停止并保留").wait_for()
    assert "已用 0:20" in panel.inner_text()

    assert canvas.complaints == []  # type: ignore[attr-defined]

    canvas.evaluate("() => { app.queuePrompt(0).catch(() => {}); }")  # it is refused
    problem = canvas.locator(".in-graph-lora-problem:visible")
    problem.wait_for()
    assert "没有这个文件夹；请检查路径" in problem.inner_text()
    canvas.keyboard.press("Escape")


def test_the_language_changes_on_the_open_page(canvas: Page, prompt: Json) -> None:
    open_prompt(canvas, prompt, "words")

    def panel() -> str:
        train = canvas.evaluate(f"() => {TRAIN}.id")
        progress(canvas, train, [[1, 0.1, 1e-4]], pace=0.5, elapsed=20, left=30, measured=True)
        return canvas.locator(PANEL).inner_text()

    assert "Stop and keep" in panel()
    for locale, button, curve in (("zh", "停止并保留", "平滑后"), ("en", "Stop and keep", "smoothed")):
        canvas.evaluate(SPEAK, locale)
        # ComfyUI loads the workflow again.
        canvas.wait_for_function(f"() => !document.querySelector('{PANEL}')")
        said = panel()
        assert button in said
        assert curve in said
