"""Captioners on the GPU: the same words as on the CPU, and the memory is given back."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from in_graph_lora.trainer.data.captioners import CaptionRequest
from in_graph_lora.trainer.data.vision_language import VisionLanguageCaptioner
from in_graph_lora.trainer.host.captioning import folder_captioner

from ..tiny_captioners import blip, florence2, llava, qwen2_vl

pytestmark = pytest.mark.gpu

MAKERS = {"blip": blip, "llava": llava, "florence2": florence2, "qwen2_vl": qwen2_vl}
PICTURES = [
    Image.fromarray(p).resize((64, 64), Image.Resampling.NEAREST)
    for p in np.random.default_rng(0).integers(0, 255, (2, 2, 2, 3), dtype=np.uint8)
]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_captioner_in_fp32_says_the_same_as_on_the_cpu(kind: str, tmp_path: Path, device: torch.device):
    if kind == "qwen2_vl" and not is_torchvision_available():
        pytest.skip("transformers reads this kind's pictures with torchvision")
    folder = MAKERS[kind](tmp_path / kind)
    said = []
    for where in (device, torch.device("cpu")):
        request = CaptionRequest(prompt="<CAPTION>" if kind == "florence2" else "a", max_length=4)
        captioner = VisionLanguageCaptioner(
            folder, request, device=where, dtype=torch.float32, check=lambda: None
        )
        with torch.inference_mode():
            said.append(captioner.caption(PICTURES, 0))
        captioner.close()
    assert said[0] == said[1]


def test_the_memory_of_a_captioner_is_given_back(tmp_path: Path, device: torch.device):
    llava(tmp_path / "llava")
    _, start = folder_captioner(str(tmp_path / "llava"), CaptionRequest(max_length=3))
    with torch.inference_mode(), start() as captioner:
        model = captioner._model  # type: ignore[attr-defined]
        assert next(model.parameters()).device.type == device.type
        assert len(captioner.caption(PICTURES[:1], 0)) == 1
        model = weakref.ref(model)
    gc.collect()
    assert model() is None
