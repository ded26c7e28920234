"""A long run costs no more at its end than at its beginning.

`IGL_LONG_STEPS=20000 python dev.py test tests/host/test_long_run.py -n 0 -s --timeout 0` prints the figures
of docs/benchmark.md.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import torch

from in_graph_lora.trainer.config import AdapterConfig, DataConfig, OptimizerConfig, SaveConfig, TrainConfig
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.data.cache import TrainingData
from in_graph_lora.trainer.events import StepDone
from in_graph_lora.trainer.runs.folder import RunFolder
from in_graph_lora.trainer.runs.listing import Runs

from ..tiny_models import TINY, build, samples
from .loaded import train_engine

pytestmark = pytest.mark.slow

STEPS = int(os.environ.get("IGL_LONG_STEPS", "150"))


@dataclass(frozen=True)
class Seen:
    """At a step."""

    step: int
    tensors: int
    """That the process holds."""
    memory: int
    """Of the process, bytes."""
    seconds: float
    """Since the run began."""


def look(step: int, since: float) -> Seen:
    gc.collect()
    held = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    return Seen(step, held, psutil.Process().memory_info().rss, time.perf_counter() - since)


def test_a_long_run_holds_no_more_at_its_end_and_its_log_is_read_at_once(tmp_path) -> None:
    family = TINY["unheard_of"]
    patcher, every, seen = build(family), STEPS // 10, list[Seen]()
    began = time.perf_counter()

    def on_event(event: Any) -> None:
        if isinstance(event, StepDone) and event.step % every == 0:
            seen.append(look(event.step, began))

    config = TrainConfig(
        name="long",
        steps=STEPS,
        adapter=AdapterConfig(rank=2),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        data=DataConfig(batch_size=1),
        save=SaveConfig(every=min(every, 100)),
    )
    x_0, conditions = samples(patcher, family, 2)
    cached = [
        CachedSample(latent=latent, conditioning=cond, key=str(i))
        for i, (latent, cond) in enumerate(zip(x_0, conditions, strict=True))
    ]
    data = TrainingData(samples=cached, class_samples=[], validation_samples=[])
    result = train_engine(patcher, data, config, tmp_path, on_event)

    second, last = seen[1], seen[-1]
    assert last.step == STEPS
    assert last.tensors <= second.tensors, "tensors that no step lets go"
    started = time.perf_counter()
    losses = RunFolder(result.run).log.losses(STEPS)
    read = time.perf_counter() - started
    assert losses == result.losses
    assert len(losses) == STEPS
    size = result.run.joinpath("events.jsonl").stat().st_size
    assert size < 400 * STEPS, "bytes a line"
    started = time.perf_counter()
    Runs(tmp_path / "runs").page(0, 50)
    listed = time.perf_counter() - started
    told = [f"step {s.step}: {s.memory / 1e6:.0f} MB, {s.tensors} tensors, {s.seconds:.0f} s" for s in seen]
    told.append(f"log: {size / 1e6:.1f} MB, read in {read:.2f} s; the list of runs in {listed:.3f} s")
    sys.stdout.write("\n".join(told) + "\n")
