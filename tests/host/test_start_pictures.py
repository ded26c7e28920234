"""Image to video: the network is given the first frame as ComfyUI's own nodes give it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_hunyuan import HunyuanImageToVideo
from comfy_extras.nodes_lt import LTXVImgToVideo
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent, WanImageToVideo
from torch import Tensor

import nodes as comfy_nodes
from in_graph_lora.nodes.compare_baseline import CompareBaseline
from in_graph_lora.trainer.config import (
    DataConfig,
    MemoryConfig,
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.data.cache import SampleCache
from in_graph_lora.trainer.data.clip import ClipOptions
from in_graph_lora.trainer.data.clip_spans import fitted
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, DatasetError, ModelError
from in_graph_lora.trainer.events import Notice, PreviewSaved
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.encode import HostLatentEncoder, pixel_step
from in_graph_lora.trainer.host.model import START, borrowed
from in_graph_lora.trainer.host.references import suited
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.host.ways import check_given, way_of

from .. import tiny_video
from ..clips import frame, write_clip
from ..tiny_models import TINY, build
from ..tiny_video import STARTS, VideoClip
from .edit_case import loaded as as_image
from .edit_case import picture, same
from .loaded import Loaded, output_folder, weight_hash

Load = Callable[[str], Loaded]
FRAMES = 9
CHOICES = {"wan 2.2 5b", "hunyuan", "ltx"}
"""Networks that draw without a start picture too."""


@pytest.fixture(scope="module")
def loaded() -> Iterator[Load]:
    @cache
    def load(name: str) -> Loaded:
        return Loaded(tiny_video.model(name), VideoClip(name), tiny_video.vae(name))

    yield load
    load.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clip that gives its own first frame, and one with a control picture."""
    for name in "ab":
        write_clip(tmp_path / "in" / f"{name}.mkv", 12, 24, size=(64, 64))
        (tmp_path / "in" / f"{name}.txt").write_text(f"caption {name}")
    picture(tmp_path / "in" / "b-control.png", (64, 64), 3)
    return tmp_path / "in"


def scanned(folder: Path, **options: Any) -> Dataset:
    return scan_folder(folder, resolution=64, clips=ClipOptions(frames=FRAMES, fps=0, part="start", **options))


def samples(models: Loaded, dataset: Dataset, said: list[Any] | None = None) -> list[CachedSample]:
    """As a run encodes them."""
    step = STARTS[models.clip.name].step
    done, _ = fitted(dataset, step=step, rate=24, model="")
    with torch.inference_mode(False):
        done = suited(done, models.model, models.clip, (said if said is not None else []).append)
        cache = SampleCache(
            latents=HostLatentEncoder(models.vae, models.model, models.clip),
            texts=HostTextEncoder(models.clip, models.model),
            step=pixel_step(models.vae, models.model),
            emit=lambda event: None,
            check_interrupt=lambda: None,
        )
        return [s.load() for s in cache.build(done, TrainConfig()).samples]


def graph(models: Loaded, text: str, start: Tensor | None) -> tuple[list[Any], dict[str, Tensor]]:
    """(positive, latent) of a graph of stock nodes."""
    name, vae = models.clip.name, models.vae
    positive = comfy_nodes.CLIPTextEncode().encode(models.clip, text)[0]
    size = (64, 64, FRAMES, 1)
    if "i2v" in name and "wan" in name:
        return WanImageToVideo.execute(positive, positive, vae, *size, start).args[::2]
    if name == "wan 2.2 5b":
        return positive, Wan22ImageToVideoLatent.execute(vae, *size, start).args[0]
    if name == "ltx":
        return LTXVImgToVideo.execute(positive, positive, start, vae, *size, 1.0).args[::2]
    kind = "v1 (concat)" if "i2v" in name else "v2 (replace)"
    return HunyuanImageToVideo.execute(positive, vae, *size, kind, start).args


def first(index: int = 0) -> Tensor:
    return torch.from_numpy(frame(index, (64, 64)).astype("float32") / 255)[None]


@pytest.mark.parametrize("name", STARTS)
def test_the_condition_of_a_clip_is_that_of_the_stock_nodes(loaded: Load, name: str, folder: Path) -> None:
    """Of its own first frame, and of the control picture beside it."""
    models = loaded(name)
    own, other = samples(models, scanned(folder, start_picture="first frame"))
    base = models.model.model
    shown = {"a": as_frames(folder / "a.mkv"), "b": as_image(folder / "b-control.png")}
    for sample, key in ((own, "a"), (other, "b")):
        positive, latent = graph(models, f"caption {key}", shown[key])
        noise, mask = sample.latent[None], latent.get("noise_mask")
        conds = comfy.sampler_helpers.convert_cond(positive)
        if base.model_config.unet_config.get("guidance_embed"):
            conds[0]["guidance"] = 1.0
        image = base.process_latent_in(latent["samples"])
        made = comfy.samplers.encode_model_conds(
            base.extra_conds, conds, noise, noise.device, "positive",
            latent_image=image if mask is not None else noise,
            denoise_mask=mask if mask is None else comfy.sampler_helpers.prepare_mask(mask, noise.shape, "cpu"),
            seed=None, latent_shapes=None,
        )[0]["model_conds"]  # fmt: skip
        want = {k: cond.process_cond(batch_size=1, area=None) for k, cond in made.items()}
        condition = dict(sample.conditioning)
        given = condition.pop(START, None)
        assert same(condition, want) == []
        assert (given is None) == (mask is None)
        if given is not None:
            assert torch.equal(given.cond, image[:, :, :1])
    assert same(own.conditioning, other.conditioning), "the start picture changes nothing"


def as_frames(path: Path) -> Tensor:
    """[1, H, W, 3]: the first frame as it is decoded."""
    from in_graph_lora.trainer.data.clips import frames_at
    from in_graph_lora.trainer.data.images import to_pixels

    return to_pixels(next(frames_at(path, [0.0], 24)))[None]


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_the_network_sees_in_training_what_it_sees_in_sampling(
    loaded: Load, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first frame as it is, and its own time; its output does not count."""
    models = loaded(name)
    net, seen = models.model.model.diffusion_model, []
    forward = type(net).forward
    monkeypatch.setattr(
        type(net), "forward", lambda self, x, t, *a, **k: (seen.append((x, t)), forward(self, x, t, *a, **k))[1]
    )
    [sample] = samples(models, scanned(folder, start_picture="first frame"))[:1]
    positive, latent = graph(models, "caption a", as_frames(folder / "a.mkv"))
    with torch.inference_mode():
        comfy_nodes.KSampler().sample(models.model, 5, 1, 1.0, "euler", "simple", positive, positive, latent)
    [(x, t)] = seen
    seen.clear()
    sigma = models.model.model.model_sampling.sigmas[-1:].clone()
    garbage = torch.cat([torch.randn_like(x[:, :, :1]), x[:, :, 1:]], dim=2).clone()
    with torch.inference_mode(False), torch.no_grad(), borrowed(models.model) as denoiser:
        denoiser.predict(garbage, sigma, [sample.conditioning])
        counts = denoiser.drawn(garbage, [sample.conditioning])
    assert torch.allclose(seen[0][0], x, atol=1e-6)
    assert torch.allclose(seen[0][1].flatten(), t.flatten(), atol=1e-6)
    assert counts is not None
    assert counts.shape == (1, 1, *x.shape[2:])
    assert not counts[:, :, 0].any()
    assert counts.mean().item() == pytest.approx(1)
