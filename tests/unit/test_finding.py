"""Which runs are the same."""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from in_graph_lora.trainer.config import (
    BASE_PRECISIONS,
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.own_loss import source_name, with_own_loss
from in_graph_lora.trainer.runs.finding import run_key

BEFORE = {
    "a photo of a cat": "4d83b32cc8499958c6799f58904d98091bf1f2d356ada1dd2d7594bc9441848c",
    "a (red:1.3) toy": "b275dcfa5d9ed1057a36577f97e5f6417681dc849182f7a783f48fccbf57e2b8",
}
"""Caption → key of its run, with MATHEMATICS 4. What is added later must not change it."""


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


SLOPE = 2.0


def steep(prediction, target, sigma):
    return SLOPE * (prediction - target).abs()


def flat(prediction, target, sigma):
    return (prediction - target).abs()


def within(limit):
    return lambda prediction, target, sigma: (prediction - target).abs().clamp(max=limit)


def test_each_loss_function_is_a_run_of_its_own(monkeypatch):
    names = [source_name(steep), source_name(flat), source_name(within(1.0)), source_name(within(2.0))]
    assert names[0] == source_name(steep)
    monkeypatch.setitem(globals(), "SLOPE", 3.0)
    names.append(source_name(steep))
    stated = with_own_loss(TrainConfig(objective=ObjectiveConfig(own_loss="steep 3")), steep)
    own = [stated.objective.own_loss, *names, ""]
    configs = [TrainConfig(objective=ObjectiveConfig(own_loss=name)) for name in own]
    assert with_own_loss(TrainConfig(), steep) == configs[5]
    assert len({run_key(c, Dataset(records=(), resolution=64), ["model"]) for c in configs}) == 7
    assert own[0] == "steep 3"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (functools.partial(steep, sigma=None), "it is no plain function"),
        (within(torch.ones(2)), "it reads limit, Tensor"),
        (types.FunctionType(steep.__code__.replace(co_filename="<none>"), {}), "its source is not in a file"),
        (within(functools.partial(steep)), "it uses the object limit"),
    ],
)
def test_a_function_that_its_source_does_not_tell_needs_a_stated_name(function, why):
    with pytest.raises(ConfigError, match=rf"{why}.*ObjectiveConfig\(own_loss="):
        with_own_loss(TrainConfig(), function)
    named = TrainConfig(objective=ObjectiveConfig(own_loss="mine"))
    assert with_own_loss(named, function) == named
    with pytest.raises(ConfigError, match="'mine' of a Python program, and none is given"):
        with_own_loss(named, None)
