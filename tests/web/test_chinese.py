"""ComfyUI's language is the language of our nodes, panels and sentences."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..live.test_crash import graph
from ..live.test_planning import planning
from ..live.test_training import graph as whole_graph
from ..live.test_training import pictures  # noqa: F401 - a fixture
from .conftest import post
from .page import READY, open_prompt, queue
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


OURS = """() => [...document.querySelectorAll(
    '.in-graph-lora-run, .in-graph-lora-text, .igl, .in-graph-lora-problem')].map((box) => box.innerText)"""
SHOWN = {"显存方案", "激活与梯度", "与未改动底模的对比", "像素相对第一列", "训练尺寸", "用途"}
SHOWN |= {"没有描述", "是罕见词", "已完成", "显存方案：每次前向", "平均裁去", "跳过"}
THEIRS = re.compile(
    r"aawxbc|figurine|a photo of|a red toy|[\w/.-]+\.(?:jpg|png|safetensors)|[\w-]+/[\w/-]+|clip_l|`[^`]*`"
    r"|euler|normal|cfg|token|LoRA|更罕见的词：.*$|\.txt|Truncated File Read",
    re.MULTILINE,
)
"""Names, paths, and words of the user."""


@pytest.mark.parametrize("canvas", ["nodes_2_0"], indirect=True)
def test_a_run_with_compare_and_plan_says_nothing_of_ours_in_english(
    canvas: Page,
    server: Server,
    tiny_checkpoint: Path,
    pictures: str,  # noqa: F811
) -> None:
    post(f"{server.url}/settings/Comfy.Locale", '"zh"')
    canvas.reload(wait_until="domcontentloaded")
    canvas.wait_for_function(READY, timeout=120_000)
    graph = whole_graph(pictures, name=f"zh-{uuid.uuid4().hex[:6]}")
    prompt = {node: graph[node] for node in ("1", "2", "3", "4", "11")}
    (plan,) = (node for node in planning(pictures).values() if node["class_type"] == "PlanTraining")
    links = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "dataset": ["3", 0]}
    prompt["20"] = {"class_type": "PlanTraining", "inputs": {**plan["inputs"], **links}}
    prompt["21"] = {"class_type": "DatasetReport", "inputs": {"dataset": ["3", 0], "clip": ["1", 1]}}
    prompt["22"] = {"class_type": "CheckTrigger", "inputs": {"clip": ["1", 1], "trigger": "aawxbc"}}
    open_prompt(canvas, prompt, "zh")
    queue(canvas)
    whole = f"(words) => words.every((word) => ({OURS})().join().includes(word))"
    canvas.wait_for_function(whole, arg=sorted(SHOWN), timeout=300_000)  # the nodes end in no order
    said = "\n".join(canvas.evaluate(OURS))
    english = {line for line in said.splitlines() if re.search("[A-Za-z]{3}", THEIRS.sub("", line))}
    assert english == set()
    assert canvas.complaints == []  # type: ignore[attr-defined]


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
