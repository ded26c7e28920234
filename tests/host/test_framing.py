"""Where framing meets a family: the steps of its sides, and what SDXL is told of sizes and crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL
from diffusers.models.embeddings import Timesteps

from in_graph_lora.trainer.data.framing import STEPS, Framing
from in_graph_lora.trainer.data.records import ImageRecord
from in_graph_lora.trainer.data.views import views
from in_graph_lora.trainer.host.conditioning import HostTextEncoder, crop_conditions
from in_graph_lora.trainer.host.encode import pixel_step

from ..tiny_models import TINY, FakeClip, build


@pytest.fixture(scope="module")
def sdxl():
    return build(TINY["sdxl"])


def of(size, **framing):
    return ImageRecord(path=Path("a.png"), caption="x", size=size, digest="d", framing=Framing(**framing))


def told(patcher, name, view):
    """The six numbers' embeddings, [6 * 256]."""
    encoder = HostTextEncoder(FakeClip(TINY[name]), patcher)
    latent = torch.zeros(TINY[name].latent)
    return encoder.encode("a caption", latent, view=view)["y"].cond[0, -6 * 256 :]


@pytest.mark.parametrize("size", [(1600, 1000), (1000, 1600), (640, 640), (3000, 1000)])
@pytest.mark.parametrize("flip", [False, True])
def test_sdxl_is_told_sizes_and_crops_as_diffusers_trainer_tells_them(sdxl, size, flip):
    view = views(of(size, flip=flip), resolution=1024)[-1]
    width, height = view.size
    # Its procedure: scale until the bucket is covered, cut the middle out, and keep where that began.
    scale = max(width / size[0], height / size[1])
    top = max(0, round((size[1] * scale - height) / 2))
    left = max(0, round((size[0] * scale - width) / 2))
    ids = torch.tensor([size[1], size[0], top, left, height, width])
    embedded = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(ids).flatten()
    torch.testing.assert_close(told(sdxl, "sdxl", view), embedded, rtol=1e-4, atol=1e-4)


def test_the_conditions_are_those_that_the_stock_node_writes():
    view = views(of((1600, 1000)), resolution=1024)[0]
    made = {}
    clip = SimpleNamespace(
        tokenize=lambda text: {"l": [1], "g": [1]},
        encode_from_tokens_scheduled=lambda tokens, add_dict: made.update(add_dict),
    )
    CLIPTextEncodeSDXL.execute(clip, text_g="", text_l="", **crop_conditions(view))
    assert made == crop_conditions(view)


def test_without_a_view_sdxl_is_told_what_comfyui_tells_it_by_itself(sdxl):
    height, width = (8 * side for side in TINY["sdxl"].latent[-2:])
    view = views(of((width, height), step=8, crop="none"), resolution=8 * width)[0]
    view = replace(view, size=(width, height))
    assert torch.equal(told(sdxl, "sdxl", None), told(sdxl, "sdxl", view))


@pytest.mark.parametrize("name", ["sd15", "flux1", "pixart"])
def test_other_families_are_told_nothing_of_crops(name):
    patcher = build(TINY[name])
    encoder = HostTextEncoder(FakeClip(TINY[name]), patcher)
    latent = torch.zeros(TINY[name].latent)
    view = views(of((1600, 1000)), resolution=1024)[0]
    without, given = encoder.encode("x", latent), encoder.encode("x", latent, view=view)
    assert without.keys() == given.keys()
    for key, cond in without.items():
        assert not isinstance(cond.cond, torch.Tensor) or torch.equal(cond.cond, given[key].cond)


@pytest.mark.parametrize(
    ("name", "compression", "step"),
    [
        ("sd15", 8, 64),
        ("sdxl", 8, 32),
        ("sd3", 8, 16),
        ("flux1", 8, 16),
        ("qwen_image", 8, 16),
        ("ltxv", 32, 32),
    ],
)
def test_the_step_of_a_family_comes_from_its_vae_its_patches_and_its_halvings(name, compression, step):
    vae = SimpleNamespace(spacial_compression_encode=lambda: compression)
    patcher = build(TINY[name])
    config = patcher.model.model_config.unet_config
    if name.startswith("sd") and "channel_mult" in config:  # the tiny networks halve less often
        real = {"sd15": 4, "sdxl": 3}[name]
        patcher.model.model_config.unet_config = {**config, "channel_mult": [1] * real}
    assert pixel_step(vae, patcher) == step
    assert max(STEPS) % step == 0  # so the contact sheet, which knows no model, shows what is trained
