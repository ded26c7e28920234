"""Whole runs of Train LoRA, previews and Compare Baseline on models that take control pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy_extras.nodes_ip2p
import pytest
import torch

import nodes as comfy_nodes
from in_graph_lora.nodes.compare_baseline import CompareBaseline
from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    MemoryConfig,
    OptimizerConfig,
    PreviewConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.data.views import views
from in_graph_lora.trainer.errors import ConfigError, DatasetError
from in_graph_lora.trainer.events import Notice, Planned, PreviewSaved, StepDone
from in_graph_lora.trainer.host import planning
from in_graph_lora.trainer.host.training import train_on_loaded

from ..tiny_models import TINY, build
from .edit_case import Edit, picture
from .edit_case import loaded as as_image
from .loaded import Loaded, weight_hash

pytestmark = pytest.mark.usefixtures("output")

HIDDEN = type("Hidden", (), {"unique_id": "1", "prompt": None, "extra_pnginfo": None})


def model(channels: int, config: str = "SD15") -> Any:
    unet = {**TINY["sd15"].unet, "context_dim": 768, "in_channels": channels}
    return build(replace(TINY["sd15"], unet=unet, config=config))


@pytest.fixture(scope="module")
def pix2pix(_loaded: Loaded) -> Loaded:
    return replace(_loaded, model=model(8, "SD15_instructpix2pix"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        picture(tmp_path / "in" / f"{i}.png", (64, 64), i)
        picture(tmp_path / "in" / f"{i}-control.png", (64, 64), 10 + i)
        (tmp_path / "in" / f"{i}.txt").write_text(f"make it blue {i}")
    return tmp_path / "in"


def run(loaded: Loaded, folder: Path, **sections: Any) -> tuple[Any, list[Any]]:
    events: list[Any] = []
    config = TrainConfig(
        **{
            "name": "edit",
            "steps": 2,
            "adapter": AdapterConfig(rank=2),
            "optimizer": OptimizerConfig(learning_rate=1e-3),
            "data": DataConfig(resolution=64),
            "memory": MemoryConfig(fit="manual"),
            **sections,
        }
    )
    dataset = scan_folder(folder, resolution=64)
    with torch.inference_mode():
        result = train_on_loaded(
            loaded.model, loaded.clip, loaded.vae, dataset, config, events.append, new_run=True
        )
    return result, events


def notices(events: list[Any]) -> list[str]:
    return [e.message for e in events if isinstance(e, Notice)]


def test_a_pix2pix_model_trains_on_pairs_and_comes_back_as_it_was(pix2pix: Loaded, folder: Path) -> None:
    before = weight_hash(pix2pix.model.model)
    result, events = run(pix2pix, folder, validation=ValidationConfig(held_out=1))
    assert len([e for e in events if isinstance(e, StepDone)]) == 2
    assert any(t.abs().max() > 0 for n, t in result.lora.items() if "lora_up" in n)
    assert weight_hash(pix2pix.model.model) == before


def test_an_inpaint_model_trains_on_pictures_alone(loaded: Loaded, folder: Path) -> None:
    for control in folder.glob("*-control.png"):
        control.unlink()
    inpaint = replace(loaded, model=model(9))
    _, events = run(inpaint, folder, epochs=1)
    assert len([e for e in events if isinstance(e, StepDone)]) == 3 * 4  # a step for each drawn mask


def test_the_text_encoder_trains_with_control_pictures(pix2pix: Loaded, folder: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-3, text_encoder_lr=1e-3)
    seen: list[set[str]] = []
    plain = pix2pix.model.model.extra_conds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pix2pix.model.model,
            "extra_conds",
            lambda **a: (seen.append(set(a)), plain(**a))[1],
            raising=False,
        )
        result, _ = run(pix2pix, folder, optimizer=optimizer)
    assert any("lora_te" in name for name in result.lora)
    assert all("concat_latent_image" in names for names in seen)


def test_the_plan_counts_the_tokens_of_control_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = Edit("flux kontext")
    planning._measured.clear()
    pictures = scan_folder(folder, resolution=64)
    picture(folder / "0-control-1.png", (64, 64), 20)
    more = scan_folder(folder, resolution=64)
    taken = []
    view = views(pictures.records[0], resolution=64)[0]
    for dataset in (pictures.with_records(replace(r, controls=()) for r in pictures.records), pictures, more):
        controls = planning.ControlEncoder(e.patcher, e.vae)(planning._largest_controls(dataset, view))
        empty = torch.zeros(16, 8, 8)
        [sample], _ = planning._samples(e.texts.encode, dataset, TrainConfig(), empty, 1, controls)
        references = sample.conditioning.get("ref_latents")
        taken.append([tuple(t.shape) for t in references.cond] if references else [])
    assert taken == [[], [(1, 16, 8, 8)], [(1, 16, 8, 8)] * 2]


def test_a_planned_run_on_pairs_is_planned(pix2pix: Loaded, folder: Path) -> None:
    planning._measured.clear()
    _, events = run(pix2pix, folder, memory=MemoryConfig())
    assert any(isinstance(e, Planned) for e in events), notices(events)


def test_a_dataset_without_pairs_is_refused_before_anything_is_encoded(pix2pix: Loaded, folder: Path) -> None:
    for control in folder.glob("*-control.png"):
        control.unlink()
    with pytest.raises(
        DatasetError, match="has input channels for a control picture and the dataset has none"
    ):
        run(pix2pix, folder)


def drawn(loaded: Loaded, prompt: str, control: torch.Tensor, seed: int) -> torch.Tensor:
    """The picture of stock nodes."""
    encode = comfy_nodes.CLIPTextEncode()
    (positive,), (negative,) = encode.encode(loaded.clip, prompt), encode.encode(loaded.clip, "")
    node = comfy_extras.nodes_ip2p.InstructPixToPixConditioning
    positive, negative, _ = node.execute(positive, negative, control, loaded.vae).args
    (latent,) = comfy_nodes.EmptyLatentImage().generate(64, 64, 1)
    (sample,) = comfy_nodes.KSampler().sample(
        loaded.model, seed, 2, 3.0, "euler", "normal", positive, negative, latent
    )
    return comfy_nodes.VAEDecode().decode(loaded.vae, sample)[0]


@torch.inference_mode()
def test_compare_baseline_draws_with_a_control_picture_as_stock_nodes_do(
    pix2pix: Loaded, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        CompareBaseline,
        "hidden",
        HIDDEN,
        raising=False,
    )
    controls = torch.cat([as_image(folder / f"{i}-control.png") for i in (0, 1)])

    def compare(control: torch.Tensor | None, prompts: str = "make it blue\nmake it red") -> torch.Tensor:
        return CompareBaseline.execute(
            pix2pix.model, pix2pix.clip, pix2pix.vae, {}, prompts, "", 7, 1, 2, 3.0, "euler",
            "normal", 64, 64, "0", control,
        ).args[1]  # fmt: skip

    want = [drawn(pix2pix, p, controls[i : i + 1], 7) for i, p in enumerate(("make it blue", "make it red"))]
    assert torch.equal(compare(controls), torch.cat(want))
    assert torch.equal(compare(controls[:1])[:1], want[0])
    twice = compare(controls, "make it blue\nmake it blue")
    assert torch.equal(twice, torch.cat([want[0], drawn(pix2pix, "make it blue", controls[1:], 7)]))
    assert not torch.equal(compare(None)[:1], want[0])
    with pytest.raises(ConfigError, match="control has 3 pictures and there are 2 prompts"):
        compare(torch.cat([controls, controls[:1]]))


@torch.inference_mode()
def test_compare_baseline_refuses_a_control_picture_that_the_model_would_not_see(
    loaded: Loaded, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        CompareBaseline,
        "hidden",
        HIDDEN,
        raising=False,
    )
    with pytest.raises(ConfigError, match="draws without control pictures; disconnect control"):
        CompareBaseline.execute(
            loaded.model, loaded.clip, loaded.vae, {}, "a cat", "", 7, 1, 2, 3.0, "euler", "normal", 64, 64,
            "0", as_image(folder / "0-control.png"),
        )  # fmt: skip


def test_previews_are_drawn_with_the_control_pictures_of_held_out_pictures(
    pix2pix: Loaded, folder: Path
) -> None:
    preview = PreviewConfig(prompts=("make it blue", "make it red"), every=2, steps=2, cfg=3.0, seed=7)
    _, events = run(pix2pix, folder, preview=preview, validation=ValidationConfig(held_out=1))
    shown = [e for e in events if isinstance(e, PreviewSaved)]
    assert len(shown) == 2, notices(events)
    held_out = scan_folder(folder, resolution=64).hold_out(1)
    [record] = (r for r in held_out.records if r.role == "validation")
    with torch.inference_mode():
        for i, prompt in enumerate(preview.prompts):
            want = drawn(pix2pix, prompt, as_image(record.controls[0].path), 7 + i)
            assert (as_image(shown[0].paths[i]) - want).abs().max() < 1.01 / 255
