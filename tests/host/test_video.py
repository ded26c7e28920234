"""Video models train on clips, end to end: ComfyUI's own VAEs, networks and sampler, made small."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo
from comfy_extras.nodes_lt import EmptyLTXVLatentVideo
from PIL import Image

import nodes as comfy_nodes
from in_graph_lora.nodes.train_objective import TrainObjective
from in_graph_lora.trainer.config import (
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.clip import Clip, ClipOptions, Span
from in_graph_lora.trainer.data.clip_spans import fitted
from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import DatasetError, ModelError
from in_graph_lora.trainer.events import Notice
from in_graph_lora.trainer.host.compare import sample_rows
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.encode import HostLatentEncoder, clip_step, pixel_step
from in_graph_lora.trainer.host.model import model_family
from in_graph_lora.trainer.host.noise import noise_process
from in_graph_lora.trainer.host.sample import (
    PreviewSampler,
    SampleSettings,
    empty_latent,
    encode_prompt,
    sample_image,
)
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.timesteps import draw_sigma

from .. import tiny_video
from ..clips import write_clip
from ..tiny_models import TINY, build
from ..tiny_video import VIDEO, VideoClip
from .loaded import Loaded, encoded, output_folder, weight_hash

Load = Callable[[str], Loaded]


@pytest.fixture(scope="module")
def loaded() -> Load:
    """A family's model with its CLIP and VAE."""
    vae = cache(tiny_video.vae)
    return lambda name: Loaded(tiny_video.model(name), VideoClip(name), vae(name))


def mixed(folder: Path, fps: int = 24) -> Path:
    """A clip of 20 frames, one of 4 and a picture."""
    write_clip(folder / "a.mp4", 20, fps, size=(96, 64))
    write_clip(folder / "b.webm", 4, fps)
    Image.new("RGB", (64, 64), "red").save(folder / "c.png")
    Image.linear_gradient("L").resize((96, 64)).save(folder / "a-masklabel.png")
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"caption {name}")
    return folder


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(
        name="video",
        steps=3,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
        data=DataConfig(resolution=64),
        memory=MemoryConfig(fit="manual"),
        **changes,
    )


def dataset(folder: Path, **options: Any) -> Dataset:
    return scan_folder(folder, resolution=64, clips=ClipOptions(**options))


@pytest.mark.parametrize("name", VIDEO)
def test_steps_of_time_are_those_of_the_vae(loaded: Load, name: str) -> None:
    own = VIDEO[name]
    models = loaded(name)
    assert clip_step(models.vae, models.model) == own.step
    assert model_family(models.model).fps == own.fps
    for frames in (1, 1 + own.step, 1 + 2 * own.step):
        latent = HostLatentEncoder(models.vae, models.model).encode([torch.rand(frames, 64, 64, 3)])[0]
        like = empty_latent(models.model, models.vae, 64, 64, frames)
        assert latent.shape == like.shape[1:], "the encoder and the stock empty latent agree"
        assert latent.shape[1] == 1 + (frames - 1) // own.step


@pytest.mark.parametrize("name", VIDEO)
def test_one_frame_is_encoded_as_a_picture_is(loaded: Load, name: str) -> None:
    models, frame = loaded(name), torch.rand(64, 64, 3)
    encoder = HostLatentEncoder(models.vae, models.model)
    assert torch.equal(encoder.encode([frame])[0], encoder.encode([frame[None]])[0])


@pytest.mark.parametrize("name", VIDEO)
def test_clips_and_pictures_train_end_to_end(loaded: Load, name: str, tmp_path: Path) -> None:
    """Folder → latents → three steps → the LoRA on ComfyUI's sampler changes a clip; the base stays."""
    own, models, events = VIDEO[name], loaded(name), []
    before = weight_hash(models.model.model)
    config = settings(
        preview=PreviewConfig(prompts=("a clip",), every=3, steps=1, cfg=1, frames=1 + own.step)
    )
    with torch.inference_mode(), output_folder(tmp_path / "out"):
        result = train_on_loaded(
            *(models.model, models.clip, models.vae, dataset(mixed(tmp_path / "in"), frames=own.step + 3)),
            *(config, events.append),
            new_run=True,
        )
        assert weight_hash(models.model.model) == before
        shot = SampleSettings(
            steps=2,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            width=64,
            height=64,
            frames=1 + own.step,
        )
        (row,) = sample_rows(
            *(models.model, models.clip, models.vae, result.lora, "", [("a clip", 0)], [0.0, 1.0], shot),
            on_step=lambda done, total: None,
        )
    assert all(torch.isfinite(loss) for loss in map(torch.as_tensor, result.losses))
    assert len(result.losses) == 3
    told = [e.message for e in events if isinstance(e, Notice)]
    assert any("too short to be trained as clips" in m and "b.webm" in m for m in told), told
    assert not any("could not be tried out" in m or "failed" in m for m in told), told
    base, trained = row.images
    assert base.shape == (1, 64, 3 * 64, 3), "first, middle and last frame side by side"
    assert not torch.equal(base, trained)
    assert result.previews is not None


@pytest.mark.parametrize("name", VIDEO)
@torch.inference_mode()
def test_a_drawn_clip_equals_that_of_the_stock_nodes(loaded: Load, name: str) -> None:
    own, models = VIDEO[name], loaded(name)
    length = 1 + 2 * own.step
    positive, negative = (encode_prompt(models.clip, text) for text in ("a clip", "bad"))
    empty = EmptyLTXVLatentVideo if name == "ltx" else EmptyHunyuanLatentVideo
    (latent,) = empty.execute(64, 64, length).args
    (sampled,) = comfy_nodes.KSampler().sample(
        models.model, 5, 2, 3.0, "euler", "simple", positive, negative, latent
    )
    (frames,) = comfy_nodes.VAEDecode().decode(models.vae, sampled)
    assert len(frames) == length
    shot = SampleSettings(
        steps=2, cfg=3.0, sampler_name="euler", scheduler="simple", width=64, height=64, frames=length
    )
    strip = sample_image(models.model, models.vae, positive, negative, 5, shot)
    assert torch.equal(strip[0], torch.cat([frames[0], frames[own.step], frames[-1]], dim=1))


def test_lengths_are_buckets_of_their_own(loaded: Load, tmp_path: Path) -> None:
    models = loaded("wan")
    folder = mixed(tmp_path)
    write_clip(folder / "d.mp4", 40, size=(96, 64))
    write_clip(folder / "e.mp4", 40, size=(64, 64))
    for stem in "de":
        (folder / f"{stem}.txt").write_text(stem)
    done, _ = fitted(dataset(folder, frames=9, fps=0, part="chunks", chunks=3), step=4, rate=16, model="Wan")
    data = encoded(models, done, settings())
    shapes = {s.key: set() for s in data.samples}
    for s in data.samples:
        shapes[s.key].add(tuple(s.latent.shape))
    assert len(data.samples) == 2 + 1 + 1 + 3 + 3 == done.shown
    assert {len(found) for found in shapes.values()} == {1}
    assert sorted({shape[1] for found in shapes.values() for shape in found}) == [1, 3]
    chunks = [s.latent for s in data.samples if s.caption == "d"]
    assert not torch.equal(chunks[0], chunks[1])


def test_a_clip_is_planned_with_its_length(loaded: Load, tmp_path: Path) -> None:
    from in_graph_lora.trainer.host.training import plan_on_loaded

    models = loaded("wan")
    folder = mixed(tmp_path)
    plans = []
    for frames in (1, 9):
        with torch.inference_mode():
            plans.append(
                plan_on_loaded(
                    models.model, models.clip, models.vae, dataset(folder, frames=frames), settings(), print
                )
            )
    assert "frames" not in plans[0].batch
    assert plans[1].batch.endswith("× 9 frames")
    assert plans[1].measured != plans[0].measured


@pytest.mark.parametrize("name", ["qwen_image", "sd15"])
def test_models_of_still_pictures_leave_clips_out(loaded: Load, name: str, tmp_path: Path) -> None:
    """Qwen-Image has the VAE of Wan, which could take clips."""
    model, vae = build(TINY[name]), loaded("wan").vae
    assert clip_step(vae, model) == 0
    with pytest.raises(ModelError, match="frames is 5 but .* makes still pictures; set frames to 1"):
        empty_latent(model, vae, 64, 64, 5)
    assert pixel_step(vae, model) % 8 == 0


def test_a_folder_of_clips_alone_is_refused_before_anything_is_encoded(loaded: Load, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", 9)
    (tmp_path / "a.txt").write_text("a")
    models = replace(loaded("wan"), model=build(TINY["qwen_image"]))
    with (
        torch.inference_mode(),
        pytest.raises(DatasetError, match=r"Qwen-Image trains on still pictures .* only clips \(a.mp4\)"),
    ):
        train_on_loaded(models.model, models.clip, models.vae, dataset(tmp_path), settings(), print)


def test_ltx_is_told_the_frame_rate_that_its_clips_are_trained_at(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As LTXVConditioning tells it, in training and in previews; without clips its own default stays."""
    ltx = loaded("ltx")
    latent = empty_latent(ltx.model, ltx.vae, 64, 64, 9)[0]

    def told(rate: float | None) -> float:
        return HostTextEncoder(ltx.clip, ltx.model, frame_rate=rate).encode("a", latent)["frame_rate"].cond

    assert (told(None), told(24.0)) == (25, 24.0)
    rates: list[float] = []
    extra_conds = type(ltx.model.model).extra_conds

    def noted(self: Any, **params: Any) -> Any:
        conds = extra_conds(self, **params)
        rates.append(conds["frame_rate"].cond)
        return conds

    monkeypatch.setattr(type(ltx.model.model), "extra_conds", noted)
    config = PreviewConfig(prompts=("a clip",), steps=1, cfg=2, frames=9)
    clip = Clip(frames=9, fps=24, spans=(Span(start=0, frames=9, fps=24.0),))
    moving = ImageRecord(path=Path("a.mp4"), caption="", size=(64, 64), digest="", clip=clip)
    for rate, records in ((None, ()), (24.0, (moving,))):
        rates.clear()
        known = Dataset(records=records, resolution=64)
        assert len(list(PreviewSampler(ltx.model, ltx.clip, ltx.vae, config, known).pictures(None))) == 1
        assert set(rates) == {rate or 25}


def test_the_two_stages_of_the_example_meet_where_its_sampler_changes_models(repo_root: Path) -> None:
    """At 0.875, Wan 2.2's own boundary for text to video, in training and in sampling."""
    workflow = json.loads((repo_root / "workflows" / "wan22_two_stages.json").read_text(encoding="utf-8"))

    def widgets(kind: str) -> list[list[Any]]:
        return [n["widgets_values"] for n in workflow["nodes"] if n["type"] == kind]

    names = [port.id for port in TrainObjective.define_schema().inputs]
    high, low = (
        ObjectiveConfig(**dict(zip(names, given, strict=False))) for given in widgets("TrainObjective")
    )
    assert (low.t_min, low.t_max, high.t_min, high.t_max) == (0, 0.875, 0.875, 1)
    process = noise_process(tiny_video.model("wan").model.model_sampling)
    assert process.shift == 8
    g = torch.Generator().manual_seed(0)
    assert (
        draw_sigma(process, high, 200, 1000, g).min() >= 0.875 >= draw_sigma(process, low, 200, 1000, g).max()
    )
    first, second = widgets("KSamplerAdvanced")
    steps, scheduler, change = first[3], first[6], first[8]
    sigmas = comfy.samplers.calculate_sigmas(tiny_video.model("wan").model.model_sampling, scheduler, steps)
    assert second[3:8] == [steps, first[4], first[5], scheduler, change]
    assert sigmas[change - 1] >= 0.875 > sigmas[change]
    assert (first[0], first[9], second[0], second[9]) == ("enable", "enable", "disable", "disable")
