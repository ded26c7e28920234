"""Sampling right after a training is as fast as before it, and gives the same picture."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from in_graph_lora.trainer.host.sample import SampleSettings, encode_prompt, sample_image

from ..host.loaded import Loaded
from .test_given_back import manual, run

pytestmark = pytest.mark.gpu

SETTINGS = SampleSettings(
    steps=10, cfg=4.0, sampler_name="euler", scheduler="normal", width=512, height=512
)  # fmt: skip
SLOWER = 1.15
"""At most; half of it is what two measurements of one thing differ by."""


def sampled(loaded: Loaded, settings: SampleSettings) -> tuple[Tensor, float]:
    """(the picture, seconds: the median of three after one that does not count)"""
    seconds = []
    with torch.inference_mode():
        positive, negative = encode_prompt(loaded.clip, "a photo"), encode_prompt(loaded.clip, "")
        for _ in range(4):
            start = time.perf_counter()
            picture = sample_image(loaded.model, loaded.vae, positive, negative, 1, settings)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return picture.cpu(), median(seconds[1:])


@pytest.mark.parametrize("streamed", [0.0, 1.0])
def test_sampling_is_as_fast_after_a_training_as_before(
    loaded, pictures, tmp_path, device, streamed, record_property: Any
):
    rehearsed = device.type == "cpu"
    settings = SampleSettings(
        steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", width=64, height=64
    ) if rehearsed else SETTINGS  # fmt: skip
    before, slow = sampled(loaded, settings)
    run(loaded, pictures, tmp_path, manual(streamed=streamed))
    after, fast = sampled(loaded, settings)
    record_property("seconds", {"before": slow, "after": fast})
    assert torch.equal(before, after)
    if not rehearsed:
        assert fast < SLOWER * slow
