"""The held-out loss of Evaluate LoRA is that of the training: of clips, pairs, start pictures and a trained
text encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from in_graph_lora.nodes.evaluate_lora import EvaluateLoRA
from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    MemoryConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data.clip import ClipOptions
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, DatasetError
from in_graph_lora.trainer.events import Validated
from in_graph_lora.trainer.host import held_out, paths
from in_graph_lora.trainer.host.held_out import HeldOut
from in_graph_lora.trainer.host.references import Choices, suited
from in_graph_lora.trainer.host.training import train_on_loaded

from .. import tiny_video
from ..clips import write_clip
from ..tiny_models import TINY, build
from ..tiny_video import VideoClip
from .edit_case import Edit, picture, same
from .loaded import Loaded
from .test_start_pictures import SEEING, Vision

pytestmark = pytest.mark.usefixtures("output")

HIDDEN = type("Hidden", (), {"unique_id": "1", "prompt": None, "extra_pnginfo": None})


@pytest.fixture(autouse=True)
def _hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EvaluateLoRA, "hidden", HIDDEN, raising=False)


def pairs(folder: Path) -> Dataset:
    for i in range(3):
        picture(folder / f"{i}.png", (64, 64), i)
        picture(folder / f"{i}-control.png", (64, 64), 10 + i)
        (folder / f"{i}.txt").write_text(f"make it blue {i}")
    return scan_folder(folder, resolution=64)


def clips(folder: Path) -> Dataset:
    """Two clips and a still picture."""
    for name in "ab":
        write_clip(folder / f"{name}.mkv", 20, 25, size=(64, 64))
        (folder / f"{name}.txt").write_text(f"caption {name}")
    picture(folder / "b-control.png", (64, 64), 3)
    picture(folder / "c.png", (64, 64), 4)
    (folder / "c.txt").write_text("caption c")
    return scan_folder(
        folder,
        resolution=64,
        clips=ClipOptions(frames=9, fps=12.5, part="chunks", start_picture="first frame"),
    )


def train(models: Loaded, dataset: Dataset, **changes: Any) -> tuple[Any, dict[int, float]]:
    """(result, step → held-out loss)"""
    events: list[Any] = []
    vision = changes.pop("clip_vision", None)
    config = TrainConfig(
        **{
            "name": "held",
            "steps": 2,
            "seed": 5,
            "adapter": AdapterConfig(rank=2),
            "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
            "data": DataConfig(resolution=64, caption_syntax="comfyui"),
            "memory": MemoryConfig(fit="manual"),
            "validation": ValidationConfig(held_out=1, every=2),
            **changes,
        }
    )
    with torch.inference_mode():
        result = train_on_loaded(
            *(models.model, models.clip, models.vae, dataset, config, events.append),
            new_run=True,
            clip_vision=vision,
        )
    return result, {e.step: e.loss for e in events if isinstance(e, Validated)}


def evaluated(models: Loaded, dataset: Dataset, output: Path, **inputs: Any) -> dict[int, float]:
    told = {
        "prompts": "x", "class_prompts": "", "unrelated_prompts": "", "negative": "", "seed": 3,
        "images_per_prompt": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal",
        "width": 64, "height": 64, **inputs,
    }  # fmt: skip
    with torch.inference_mode():
        EvaluateLoRA.execute(models.model, models.clip, models.vae, dataset=dataset, **told)
    newest = max(output.rglob("report.json"), key=lambda path: path.stat().st_mtime_ns)
    columns = json.loads(newest.read_text(encoding="utf-8"))["columns"]
    return {2 * (i > 0): column["figures"]["loss"]["value"] for i, column in enumerate(columns)}


def run_name() -> str:
    (name,) = paths.runs().names()
    return name


def pix2pix(loaded: Loaded, channels: int = 8, config: str = "SD15_instructpix2pix") -> Loaded:
    unet = {**TINY["sd15"].unet, "context_dim": 768, "in_channels": channels}
    return replace(loaded, model=build(replace(TINY["sd15"], unet=unet, config=config)))


def video(name: str) -> Loaded:
    return Loaded(tiny_video.model(name), VideoClip(name), tiny_video.vae(name))


def check_equal(found: dict[int, float], logged: dict[int, float]) -> None:
    assert found.keys() == logged.keys() == {0, 2}
    for step, loss in logged.items():
        assert found[step] == pytest.approx(loss, rel=1e-4)
    assert found[0] != found[2]


@pytest.mark.parametrize("text_lr", [0.0, 1e-2])
def test_of_pairs_with_a_control_picture(
    loaded: Loaded, tmp_path: Path, output: Path, text_lr: float
) -> None:
    models, dataset = pix2pix(loaded), pairs(tmp_path / "in")
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, text_encoder_lr=text_lr)
    _, logged = train(models, dataset, optimizer=optimizer)
    check_equal(evaluated(models, dataset, output, run=run_name(), checkpoints=1), logged)
    without = dataset.with_records(replace(r, controls=()) for r in dataset.records)
    with pytest.raises(DatasetError, match="input channels for a control picture"):
        evaluated(models, without, output, run=run_name())


def test_of_an_inpaint_model_with_its_drawn_masks(loaded: Loaded, tmp_path: Path, output: Path) -> None:
    models, dataset = pix2pix(loaded, 9, "SD15"), pairs(tmp_path / "in")
    _, logged = train(models, dataset)
    check_equal(evaluated(models, dataset, output, run=run_name(), checkpoints=1), logged)


def test_of_clips_with_start_pictures(tmp_path: Path, output: Path) -> None:
    models, dataset = video("ltx"), clips(tmp_path / "in")
    _, logged = train(models, dataset, validation=ValidationConfig(held_out=2, every=2))
    check_equal(evaluated(models, dataset, output, run=run_name(), checkpoints=1, scheduler="simple"), logged)


def test_of_clips_that_a_clip_vision_model_sees(tmp_path: Path, output: Path) -> None:
    models, dataset = video("hunyuan 1.5"), clips(tmp_path / "in")
    vision = Vision(*SEEING["hunyuan 1.5"])
    validation = ValidationConfig(held_out=2, every=2)
    _, logged = train(models, dataset, validation=validation, clip_vision=vision)
    asked = dict(run=run_name(), checkpoints=1, scheduler="simple")
    seeing = evaluated(models, dataset, output, **asked, start_clip_vision=vision)
    check_equal(seeing, logged)
    blind = evaluated(models, dataset, output, **asked)
    assert abs(blind[0] - logged[0]) > 10 * abs(seeing[0] - logged[0])


def test_a_file_says_how_it_was_trained(loaded: Loaded, tmp_path: Path, output: Path) -> None:
    models, dataset = pix2pix(loaded), pairs(tmp_path / "in")
    result, logged = train(models, dataset)
    found = evaluated(models, dataset, output, lora_files=result.path.name, held_out=1)
    check_equal(found, logged)
    other = evaluated(models, dataset, output, lora=result.lora, held_out=1)
    assert other[0] != found[0], "of another seed"


def test_more_held_out_than_there_is_is_told_before_a_picture_is_drawn(
    loaded: Loaded, tmp_path: Path, output: Path
) -> None:
    dataset = pairs(tmp_path / "in")
    with pytest.raises((ConfigError, DatasetError), match="held_out is 3 but the dataset has 3 pictures"):
        evaluated(loaded, dataset, output, lora={"a": torch.zeros(1)}, held_out=3)


@pytest.mark.parametrize("node", ["auto", "TextEncodeQwenImageEdit"])
def test_an_edit_model_is_shown_the_pictures_by_the_node_that_was_chosen(
    tmp_path: Path, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("clip_fingerprint", "vae_fingerprint"):  # these have no weights
        monkeypatch.setattr(held_out, name, lambda own: (type(own).__name__, ["all"]))
    edit, told = Edit("qwen edit plus"), []
    choices = Choices(edit_node=node)
    dataset = pairs(tmp_path)
    with torch.inference_mode():
        held = suited(dataset, edit.patcher, edit.clip, told.append, choices).hold_out(1)
        [kept] = HeldOut(edit.patcher, edit.clip, edit.vae, held, choices=choices)._samples
    own = held.with_records(r.with_role("instance") for r in held.records if r.role == "validation")
    [trained] = edit.samples(own, choices=choices)
    assert torch.equal(kept.latent, trained.latent)
    assert same(kept.conditioning, trained.conditioning) == []
    assert "ref_latents" in kept.conditioning
