"""The plan of a run: what it predicts is what a run takes, and the levers that it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from in_graph_lora.trainer.config import AdapterConfig, MemoryConfig, TrainConfig
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.measure import measure
from in_graph_lora.trainer.memory.live import watched
from in_graph_lora.trainer.memory.plan import Measured, need
from in_graph_lora.trainer.ports import Loan
from in_graph_lora.trainer.rng import stream
from in_graph_lora.trainer.trained import prepared
from in_graph_lora.trainer.updater import Updater

from .family_case import Case

CPU = torch.device("cpu")
CONFIG = TrainConfig(adapter=AdapterConfig(rank=4), memory=MemoryConfig(fit="manual"))
LEVERS = [
    {},
    {"checkpointing": 1},
    {"checkpointing": 2},
    {"streamed": 0.5},
    {"checkpointing": 1, "streamed": 1.0},
]


def batch(c: Case, size: int = 2) -> list[CachedSample]:
    """Latents larger than the tests' usual ones, so that activations count."""
    x = c.x_0[0]
    x = x.repeat(*[1] * (x.ndim - 2), 2, 2)
    return [CachedSample(latent=x, conditioning=c.conditioning[i % 2], key=str(i)) for i in range(size)]


def planned(c: Case, samples: Sequence[CachedSample], config: TrainConfig = CONFIG) -> Measured:
    with torch.inference_mode(False), borrowed(c.patcher, config.memory) as denoiser:
        return measure(Loan(denoiser=denoiser), config, samples, check_interrupt=lambda: None)


def taken(c: Case, samples: Sequence[CachedSample], config: TrainConfig) -> int:
    """Bytes that two steps of a run take beside the weights."""
    names = (lambda layers: {}, lambda layers: {})
    with (
        torch.inference_mode(False),
        borrowed(c.patcher, config.memory) as denoiser,
        watched(CPU) as live,
        prepared(Loan(denoiser=denoiser), config, *names, None) as (trained, objective),
    ):
        live.mark()
        updater = Updater(trained.groups, config, 2, fp16=False)
        for _ in range(2):
            loss = objective.loss(objective.draw(samples, stream(0, "noise"))).sum()
            loss.backward()
            updater.step(loss.detach())
        return live.peak


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux1", "qwen_image", "wan21_video", "unheard_of"])
def test_what_is_predicted_is_within_a_tenth_of_what_a_run_takes(name: str) -> None:
    c = Case(name)
    samples = batch(c)
    measured = planned(c, samples)
    rows = []
    for levers in LEVERS:
        config = replace(CONFIG, memory=MemoryConfig(fit="manual", **levers))
        found = need(measured, config.memory)
        rows.append((levers, found.device - found.weights, taken(c, samples, config)))
    assert all(abs(predicted / real - 1) < 0.1 for _, predicted, real in rows), rows
