"""Which runs are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from in_graph_lora.trainer.config import (
    BASE_PRECISIONS,
    DataConfig,
    MemoryConfig,
    OptimizerConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.runs.finding import run_key

BEFORE = {
    "a photo of a cat": "0fa87848a9abfe71a22964c969fb9c65fec513e42bba379823a0c5c2ee371f6f",
    "a (red:1.3) toy": "687b9fb36b57a239742a5e9db6696250598a9be6842dfe6446813665f9a0cabe",
}
"""Caption → key of its run, as it was before caption_syntax could be chosen and brackets were weights."""


def key(caption: str, syntax: str, **memory: Any) -> str:
    data = DataConfig(resolution=64, caption_syntax=syntax)
    record = ImageRecord(path=Path("0.png"), caption=caption, size=(64, 64), digest="00")
    config = TrainConfig(
        name="toy", data=data, optimizer=OptimizerConfig(learning_rate=1e-3), memory=MemoryConfig(**memory)
    )
    return run_key(config, Dataset(records=(record,), resolution=64), ["model", "clip", "vae"])


@pytest.mark.parametrize("syntax", ["text", "comfyui"])
def test_a_run_from_before_is_found_again_where_its_caption_has_no_syntax(syntax):
    assert key("a photo of a cat", syntax) == BEFORE["a photo of a cat"]


def test_a_run_from_before_that_weighed_brackets_goes_on_only_where_that_is_asked_for():
    assert key("a (red:1.3) toy", "comfyui") == BEFORE["a (red:1.3) toy"]
    assert key("a (red:1.3) toy", "text") != BEFORE["a (red:1.3) toy"]


@pytest.mark.parametrize("caption", [r"saber \(fate\)", "smile :)", "a embedding:toy"])
def test_syntax_starts_a_run_of_its_own(caption):
    assert key(caption, "text") != key(caption, "comfyui")


@pytest.mark.parametrize(
    "memory", [{}, {"base_precision": "as loaded"}, {"streamed": 0.5, "checkpointing": 1}]
)
def test_what_trades_time_for_memory_is_the_same_run(memory):
    assert key("a photo of a cat", "text", **memory) == BEFORE["a photo of a cat"]


def test_each_base_precision_is_a_run_of_its_own():
    keys = {key("a photo of a cat", "text", base_precision=p) for p in BASE_PRECISIONS}
    assert len(keys) == len(BASE_PRECISIONS)
