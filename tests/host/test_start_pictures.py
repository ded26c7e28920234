"""Image to video: the network is given the first frame as ComfyUI's own nodes give it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from comfy.sampler_helpers import prepare_mask
from comfy_extras.nodes_hunyuan import (
    HunyuanImageToVideo,
    HunyuanVideo15ImageToVideo,
    TextEncodeHunyuanVideo_ImageToVideo,
)
from comfy_extras.nodes_lt import LTXVImgToVideo
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent, WanImageToVideo
from torch import Tensor, nn

import nodes as comfy_nodes
from in_graph_lora.nodes.compare_baseline import CompareBaseline
from in_graph_lora.trainer.config import (
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.data.cache import SampleCache
from in_graph_lora.trainer.data.clip import ClipOptions
from in_graph_lora.trainer.data.clip_spans import fitted
from in_graph_lora.trainer.data.clips import frames_at
from in_graph_lora.trainer.data.images import to_pixels
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, DatasetError, ModelError
from in_graph_lora.trainer.events import Notice, PreviewSaved
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.encode import HostLatentEncoder, pixel_step
from in_graph_lora.trainer.host.model import START, HostDenoiser, borrowed
from in_graph_lora.trainer.host.references import UNCHOSEN, Choices, suited
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.host.ways import check_draws_alone, check_given, way_of
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.objective import Objective
from in_graph_lora.trainer.rng import stream
from in_graph_lora.trainer.runs.validation import level_losses

from .. import tiny_video
from ..clips import write_clip
from ..tiny_models import CPU, TINY, build
from ..tiny_video import STARTS, VideoClip
from .edit_case import loaded as as_image
from .edit_case import picture, same
from .family_case import Case, adapted, relative
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
        write_clip(tmp_path / "in" / f"{name}.mkv", 12, 25, size=(64, 64))
        (tmp_path / "in" / f"{name}.txt").write_text(f"caption {name}")
    picture(tmp_path / "in" / "b-control.png", (64, 64), 3)
    return tmp_path / "in"


def scanned(folder: Path, **options: Any) -> Dataset:
    return scan_folder(
        folder, resolution=64, clips=ClipOptions(frames=FRAMES, fps=0, part="start", **options)
    )


def samples(models: Loaded, dataset: Dataset, choices: Choices = UNCHOSEN) -> list[CachedSample]:
    """As a run encodes them."""
    step = STARTS[models.clip.name].step
    done, _ = fitted(dataset, step=step, rate=24, model="")
    with torch.inference_mode(False):
        done = suited(done, models.model, models.clip, lambda event: None, choices)
        cache = SampleCache(
            latents=HostLatentEncoder(models.vae, models.model, models.clip, choices),
            texts=HostTextEncoder(models.clip, models.model),
            step=pixel_step(models.vae, models.model),
            emit=lambda event: None,
            check_interrupt=lambda: None,
        )
        return [s.load() for s in cache.build(done, TrainConfig()).samples]


def graph(
    models: Loaded, text: str, start: Tensor, vision: Any = None
) -> tuple[list[Any], dict[str, Tensor]]:
    """(positive, latent) of a graph of stock nodes."""
    name, vae = models.clip.name, models.vae
    seen = comfy_nodes.CLIPVisionEncode().encode(vision, start, "none")[0] if vision else None
    positive = comfy_nodes.CLIPTextEncode().encode(models.clip, text)[0]
    size = (64, 64, FRAMES, 1)
    if name in ("wan 2.1 i2v", "wan 2.2 i2v"):
        return WanImageToVideo.execute(positive, positive, vae, *size, start, seen).args[::2]
    if name == "wan 2.2 5b":
        return positive, Wan22ImageToVideoLatent.execute(vae, *size, start).args[0]
    if name == "ltx":
        return LTXVImgToVideo.execute(positive, positive, start, vae, *size, 1.0).args[::2]
    if name == "hunyuan 1.5":
        return HunyuanVideo15ImageToVideo.execute(positive, positive, vae, *size, start, seen).args[::2]
    if seen is not None:
        (positive,) = TextEncodeHunyuanVideo_ImageToVideo.execute(models.clip, seen, text, 2).args
    kind = "v1 (concat)" if "i2v" in name else "v2 (replace)"
    return HunyuanImageToVideo.execute(positive, vae, *size, kind, start).args


def sampled(models: Loaded, positive: list[Any], latent: dict[str, Tensor], noise: Tensor) -> dict[str, Any]:
    """The network's arguments for a conditioning and a latent of a graph, by ComfyUI's own sampling code."""
    base, mask = models.model.model, latent.get("noise_mask")
    conds = comfy.sampler_helpers.convert_cond(positive)
    if base.model_config.unet_config.get("guidance_embed"):
        conds[0]["guidance"] = 1.0
    made = comfy.samplers.encode_model_conds(
        base.extra_conds, conds, noise, noise.device, "positive",
        latent_image=noise if mask is None else base.process_latent_in(latent["samples"]),
        denoise_mask=None if mask is None else prepare_mask(mask, noise.shape, "cpu"),
        seed=None, latent_shapes=None,
    )[0]["model_conds"]  # fmt: skip
    return {k: cond.process_cond(batch_size=1, area=None) for k, cond in made.items()}


@pytest.mark.parametrize("name", STARTS)
def test_the_condition_of_a_clip_is_that_of_the_stock_nodes(loaded: Load, name: str, folder: Path) -> None:
    """Of its own first frame, and of the control picture beside it."""
    models = loaded(name)
    own, other = samples(models, scanned(folder, start_picture="first frame"))
    shown = {"a": as_frames(folder / "a.mkv"), "b": as_image(folder / "b-control.png")}
    for sample, key in ((own, "a"), (other, "b")):
        positive, latent = graph(models, f"caption {key}", shown[key])
        condition = dict(sample.conditioning)
        given = condition.pop(START, None)
        assert same(condition, sampled(models, positive, latent, sample.latent[None])) == []
        assert (given is None) == ("noise_mask" not in latent)
        if given is not None:
            assert torch.equal(given.cond, models.model.model.process_latent_in(latent["samples"])[:, :, :1])
    assert same(own.conditioning, other.conditioning), "the start picture changes nothing"


def as_frames(path: Path) -> Tensor:
    """[1, H, W, 3]: the first frame as it is decoded."""
    return to_pixels(next(frames_at(path, [0.0], 25)))[None]


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_the_network_sees_in_training_what_it_sees_in_sampling(
    loaded: Load, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first frame as it is, and its own time; its output does not count."""
    models = loaded(name)
    net, seen = models.model.model.diffusion_model, []
    forward = type(net).forward
    monkeypatch.setattr(
        type(net),
        "forward",
        lambda self, x, t, *a, **k: (seen.append((x, t)), forward(self, x, t, *a, **k))[1],
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


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "name": "start",
            "steps": 2,
            "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
            "data": DataConfig(resolution=64),
            "memory": MemoryConfig(fit="manual"),
            **changes,
        }
    )


def run(models: Loaded, dataset: Dataset, output: Path, **changes: Any) -> tuple[Any, list[Any]]:
    events: list[Any] = []
    vision = changes.pop("clip_vision", None)
    with torch.inference_mode(), output_folder(output):
        result = train_on_loaded(
            *(models.model, models.clip, models.vae, dataset, settings(**changes), events.append),
            new_run=True,
            clip_vision=vision,
        )
    return result, events


def notices(events: list[Any]) -> list[str]:
    return [e.message for e in events if isinstance(e, Notice)]


def drawn(models: Loaded, prompt: str, start: Tensor, seed: int) -> Tensor:
    """[F, H, W, 3]: the clip of a graph of stock nodes."""
    positive, latent = graph(models, prompt, start)
    negative, _ = graph(models, "", start)
    sampler = comfy_nodes.KSampler()
    (out,) = sampler.sample(models.model, seed, 2, 3.0, "euler", "simple", positive, negative, latent)
    return comfy_nodes.VAEDecode().decode(models.vae, out)[0]


def strip(frames: Tensor) -> Tensor:
    return torch.cat([frames[0], frames[(FRAMES - 1) // 2], frames[-1]], dim=1)[None]


@pytest.mark.parametrize("name", ["wan 2.2 i2v", "wan 2.2 5b", "ltx"])
def test_a_run_with_start_pictures_goes_from_the_folder_to_a_clip_drawn_as_stock_nodes_do(
    loaded: Load, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = loaded(name)
    before = weight_hash(models.model.model)
    preview = PreviewConfig(
        prompts=("a clip", "b clip"), every=2, steps=2, cfg=3.0, frames=FRAMES, scheduler="simple", seed=7
    )
    clips = scanned(folder, start_picture="first frame")
    result, events = run(models, clips, tmp_path / "out", preview=preview)
    assert weight_hash(models.model.model) == before
    assert len(result.losses) == 2
    assert not any("could not be" in m or "failed" in m for m in notices(events)), notices(events)
    monkeypatch.setattr(
        CompareBaseline,
        "hidden",
        type("Hidden", (), {"unique_id": "1", "prompt": None, "extra_pnginfo": None}),
        raising=False,
    )
    starts = torch.cat([as_frames(folder / "a.mkv"), as_image(folder / "b-control.png")])
    shown = [e for e in events if isinstance(e, PreviewSaved)]
    assert len(shown) == 2

    def compare(control: Tensor | None, frames: int) -> Any:
        return CompareBaseline.execute(
            *(models.model, models.clip, models.vae, result.lora, "a clip\nb clip", "", 7, 1, 2, 3.0),
            *("euler", "simple", 64, 64, "0, 1", control, frames),
        ).args

    with torch.inference_mode():
        want = [
            drawn(models, f"{k} clip", starts[i : i + 1], s) for i, (k, s) in enumerate((("a", 7), ("b", 7)))
        ]
        _, base, trained, _ = compare(starts, FRAMES)
        assert torch.equal(base, torch.cat([strip(frames) for frames in want]))
        assert not torch.equal(base, trained)
        first_preview = drawn(models, "a clip", starts[:1], 7)
        assert (as_image(shown[0].paths[0]) - strip(first_preview)).abs().max() < 1.01 / 255
        if name in CHOICES:
            with pytest.raises(ConfigError, match="frames is 1, and a start picture is the first frame"):
                compare(starts, 1)
            assert compare(None, FRAMES)[1].shape == base.shape
        else:
            for control, frames in ((None, FRAMES), (starts, 1)):
                with pytest.raises(
                    ConfigError, match="draws clips from a start picture; connect one to control"
                ):
                    compare(control, frames)


def test_auto_gives_a_start_picture_where_one_is_needed_or_lies_beside_the_clip(
    loaded: Load, folder: Path
) -> None:
    def starts(name: str, choice: str) -> list[tuple[bool, int]]:
        models = loaded(name)
        done, _ = fitted(scanned(folder, start_picture=choice), step=STARTS[name].step, rate=24, model="")
        found = suited(done, models.model, models.clip, lambda event: None)
        return [(r.first_frame, len(r.controls)) for r in found.records]

    assert starts("wan 2.1 i2v", "auto") == [(True, 0), (False, 1)]
    assert starts("ltx", "auto") == [(False, 0), (False, 1)]
    assert starts("ltx", "first frame") == [(True, 0), (False, 1)]
    assert starts("ltx", "none") == [(False, 0), (False, 0)]
    with pytest.raises(
        DatasetError, match=r"start_picture is none \(Video Clips\) for a.mkv, b.mkv; choose auto"
    ):
        starts("wan 2.1 i2v", "none")
    with pytest.raises(DatasetError, match="start_picture is 'last'; choose one of auto, first frame, none"):
        ClipOptions(start_picture="last")  # type: ignore[arg-type]
    digests = {scanned(folder, start_picture=c).digest for c in ("auto", "first frame", "none")}
    assert len(digests) == 1, "of what was asked for, only what came of it counts"


def test_still_pictures_are_left_out_where_the_first_frame_is_given(loaded: Load, folder: Path) -> None:
    picture(folder / "c.png", (64, 64), 5)
    picture(folder / "c-control.png", (64, 64), 6)
    (folder / "c.txt").write_text("caption c")

    def kept(name: str) -> tuple[list[tuple[str, int]], list[str]]:
        models, said = loaded(name), []
        done, _ = fitted(scanned(folder), step=STARTS[name].step, rate=24, model="")
        found = suited(done, models.model, models.clip, said.append)
        return [(r.name, len(r.controls)) for r in found.records], notices(said)

    names, told = kept("wan 2.2 i2v")
    assert names == [("a.mkv", 0), ("b.mkv", 1)]
    assert "WAN21 is given the first frame, so still pictures are left out: c.png" in told
    names, told = kept("ltx")
    assert names == [("a.mkv", 0), ("b.mkv", 1), ("c.png", 0)]
    assert "LTXV takes control pictures of clips only; not used of c.png" in told
    for clip in folder.glob("*.mkv"):
        clip.unlink()
    with pytest.raises(DatasetError, match=r"the dataset has only still pictures \(.*c.png.*\); add clips"):
        kept("wan 2.2 i2v")


def test_class_pictures_are_refused_where_a_start_picture_is_needed(
    loaded: Load, folder: Path, tmp_path: Path
) -> None:
    prior = PriorConfig(method="class_images", class_prompt="a clip", class_images=1)
    with pytest.raises(ConfigError, match="WAN21 draws from a start picture, and class pictures have none"):
        run(loaded("wan 2.2 i2v"), scanned(folder), tmp_path / "out", prior=prior)


def test_a_network_that_needs_what_no_dataset_has_is_refused_by_name(loaded: Load) -> None:
    wan = TINY["wan21_video"]
    fun = build(
        replace(wan, config="WAN21_FunControl2V", unet={**wan.unet, "in_dim": 48, "model_type": "i2v"})
    )
    assert not way_of(fun).start
    with pytest.raises(
        ModelError, match="WAN21 is given a control video beside the caption, which this pack"
    ):
        check_given(fun)
    camera = build(replace(wan, config="WAN21_Camera", from_file=False, unet={
        **wan.unet, "in_dim": 32, "model_type": "camera", "in_dim_control_adapter": 24,
    }))  # fmt: skip
    with pytest.raises(ModelError, match="WAN21_Camera is given a camera's path"):
        check_given(camera)
    cosmos = TINY["cosmos_predict2"]
    i2v = build(replace(cosmos, config="CosmosI2VPredict2", unet={**cosmos.unet, "in_channels": 17}))
    with pytest.raises(ModelError, match="CosmosPredict2 is given a start picture, in a way of its own"):
        check_given(i2v)
    for name in (*STARTS, "wan21_image"):
        check_given(loaded(name).model if name in STARTS else build(TINY[name]))


class Vision:
    """What a CLIP vision model sees: drawn from the pixels."""

    def __init__(self, width: int, attribute: str) -> None:
        self.width, self.attribute = width, attribute
        self.patcher = comfy.model_patcher.ModelPatcher(nn.Linear(1, 1), CPU, CPU)

    def encode_image(self, image: Tensor, crop: bool = True) -> comfy.clip_vision.Output:
        assert not crop
        output = comfy.clip_vision.Output()
        g = torch.Generator().manual_seed(int(image.double().sum() * 1e3))
        output["image_sizes"] = [tuple(image.shape[1:])]
        output["mm_projected"] = None
        output[self.attribute] = torch.randn(1, 5, self.width, generator=g)
        return output


SEEING = {
    "wan 2.1 i2v": (1280, "penultimate_hidden_states"),
    "hunyuan i2v": (8, "mm_projected"),
    "hunyuan 1.5": (1152, "last_hidden_state"),
}


@pytest.mark.parametrize("name", SEEING)
def test_a_clip_vision_model_is_shown_the_start_picture_as_in_a_graph(
    loaded: Load, name: str, folder: Path, tmp_path: Path
) -> None:
    models, vision = loaded(name), Vision(*SEEING[name])
    clips = scanned(folder, start_picture="first frame")
    choices = Choices(vision=vision, vision_identity="v")  # type: ignore[arg-type]
    start = as_frames(folder / "a.mkv")
    sample = samples(models, clips, choices)[0]
    positive, latent = graph(models, "caption a", start, vision)
    assert same(sample.conditioning, sampled(models, positive, latent, sample.latent[None])) == []
    blind = samples(models, clips)[0]
    assert same(sample.conditioning, blind.conditioning), "what it sees changes nothing"
    _, events = run(models, clips, tmp_path / "seeing", steps=1, clip_vision=vision)
    assert not any("vision" in m for m in notices(events))
    if name == "wan 2.1 i2v":
        _, events = run(models, clips, tmp_path / "blind", steps=1)
        assert any("clip_vision is not connected (Train LoRA)" in m for m in notices(events))


def test_previews_of_one_frame_are_told_to_be_without_a_start_picture(
    loaded: Load, folder: Path, tmp_path: Path
) -> None:
    preview = PreviewConfig(prompts=("a clip",), every=1, steps=1, cfg=1.0)
    _, events = run(loaded("wan 2.2 i2v"), scanned(folder), tmp_path / "out", steps=1, preview=preview)
    assert any(
        "previews are still pictures without; raise frames (Train Preview)" in m for m in notices(events)
    )


def test_a_clip_vision_model_that_is_not_needed_is_not_used_which_is_said(
    loaded: Load, folder: Path, tmp_path: Path
) -> None:
    _, events = run(loaded("ltx"), scanned(folder), tmp_path / "out", steps=1, clip_vision=Vision(8, "x"))
    assert "LTXV takes no CLIP vision; clip_vision is not used" in notices(events)


def test_evaluate_lora_says_that_it_has_no_start_picture(loaded: Load) -> None:
    check_draws_alone(loaded("ltx").model)
    with pytest.raises(ModelError, match="WAN21 draws from a start picture, which Evaluate LoRA has none of"):
        check_draws_alone(loaded("wan 2.2 i2v").model)


class StartCase(Case):
    """Two clips with start pictures."""

    def __init__(self, models: Loaded, drawn: list[CachedSample]) -> None:
        self.patcher, self.sampling = models.model, models.model.model.model_sampling
        self.x_0 = torch.stack([sample.latent for sample in drawn])
        self.conditioning = [sample.conditioning for sample in drawn]


@pytest.mark.parametrize("name", ["wan 2.1 i2v", "wan 2.2 5b", "hunyuan", "hunyuan 1.5", "ltx"])
def test_gradients_with_start_pictures_equal_the_oracles(loaded: Load, name: str, folder: Path) -> None:
    models = loaded(name)
    seeing = Choices(vision=Vision(*SEEING[name])) if name in SEEING else UNCHOSEN  # type: ignore[arg-type]
    c = StartCase(models, samples(models, scanned(folder, start_picture="first frame"), seeing))
    with adapted(c) as (denoiser, adapter):
        right = c.gradients(denoiser, adapter, torch.autograd.graph.allow_mutation_on_saved_tensors())
        assert right.isfinite().all()
        assert (right != 0).float().mean() > 0.8
        assert relative(c.gradients(denoiser, adapter), right) < 1e-5
        with checkpointed(denoiser.blocks, 1):
            assert relative(c.gradients(denoiser, adapter), right) < 1e-5


def test_what_the_network_makes_of_a_given_frame_counts_in_no_loss(
    loaded: Load, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the training, of output preservation and of held-out clips; and the rest counts as a mean."""
    models = loaded("ltx")
    drawn_with = samples(models, scanned(folder, start_picture="first frame"))
    with_class = [replace(s, class_conditioning=s.conditioning) for s in drawn_with]
    predict, spoiled = HostDenoiser.predict, [0.0]

    def spoil(self: HostDenoiser, x_t: Tensor, *rest: Any) -> Tensor:
        out = torch.zeros_like(predict(self, x_t, *rest))
        out[:, :, 0] += spoiled[0] * torch.randn(())
        return out

    monkeypatch.setattr(HostDenoiser, "predict", spoil)
    found = []
    for amount in (0.0, 100.0):
        spoiled[0] = amount
        with adapted(StartCase(models, drawn_with)) as (denoiser, adapter), torch.no_grad():
            prior = PriorConfig(method="output_preservation", class_prompt="a clip")
            objective = Objective(config=ObjectiveConfig(), prior=prior, denoiser=denoiser, adapter=adapter)
            batch = objective.draw(with_class, stream(0, "test"))
            losses = objective.loss(batch), objective.preservation_loss(batch, with_class)
            levels = level_losses(denoiser, drawn_with, seed=0, batch_size=2)
        found.append(torch.cat([*losses, levels.flatten()]))
        rest = batch.noised.target[:, :, 1:].square().flatten(1).mean(1)
        assert torch.allclose(losses[0], rest, rtol=1e-5)
    assert torch.equal(*found)
