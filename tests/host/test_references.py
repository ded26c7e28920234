"""Control pictures: what reaches the network is what ComfyUI's own nodes build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nodes as comfy_nodes
from in_graph_lora.trainer.adapters.lora_file import read_lora
from in_graph_lora.trainer.config import (
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PriorConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.cache import TrainingData
from in_graph_lora.trainer.data.drawn_masks import MASKS, drawn_mask, with_drawn_masks
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import DatasetError, ModelError
from in_graph_lora.trainer.events import Event, Notice
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.host.references import Choices, suited
from in_graph_lora.trainer.host.ways import node_class, way_of
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.objective import Objective
from in_graph_lora.trainer.rng import stream

from .edit_case import EDITS, PROMPT, SIZE, Edit, EditCase, loaded, of_comfyui, pair, picture, same
from .family_case import Case, adapted, relative
from .loaded import train_engine

STOCK = {
    "InstructPixToPixConditioning": "nodes_ip2p",
    "ReferenceLatent": "nodes_edit_model",
    "TextEncodeBooguEdit": "nodes_boogu",
    "TextEncodeJoyImageEdit": "nodes_joyimage",
    "TextEncodeMageFlowEdit": "nodes_mage",
    "TextEncodeQwenImageEdit": "nodes_qwen",
    "TextEncodeQwenImageEditPlus": "nodes_qwen",
}


def execute(node: str, *args: Any, **kwargs: Any) -> Any:
    return of_comfyui("comfy_extras", f"{STOCK[node]}:{node}").execute(*args, **kwargs)


def stock(e: Edit, controls: list[torch.Tensor], target: torch.Tensor, mask: torch.Tensor) -> list[Any]:
    """The positive conditioning that a graph of stock nodes has."""
    clip, vae, name = e.clip, e.vae, e.name
    text = lambda: comfy_nodes.CLIPTextEncode().encode(clip, PROMPT)[0]  # noqa: E731
    if name in ("sd15 inpaint", "flux fill"):
        positive = text()
        return comfy_nodes.InpaintModelConditioning().encode(positive, positive, controls[0], vae, mask)[0]
    if name in ("sd15 pix2pix", "sdxl pix2pix", "flux depth", "hidream e1"):
        positive = text()
        return execute("InstructPixToPixConditioning", positive, positive, controls[0], vae)[0]
    if name == "qwen edit plus":
        images = {f"image{i}": c for i, c in enumerate(controls, 1)}
        return execute("TextEncodeQwenImageEditPlus", clip, PROMPT, vae, **images)[0]
    if name == "longcat edit":
        return execute("TextEncodeQwenImageEdit", clip, PROMPT, vae, controls[0])[0]
    if name == "boogu":
        images = {f"image_{i}": c for i, c in enumerate(controls, 1)}
        return execute("TextEncodeBooguEdit", clip, PROMPT, "", vae, images)[0]
    if name == "mage":
        images = {f"image_{i}": c for i, c in enumerate(controls, 1)}
        return execute("TextEncodeMageFlowEdit", clip, PROMPT, "", vae, images, width=SIZE, height=SIZE)[0]
    if name == "joyimage":
        images = {f"image{i}": c for i, c in enumerate(controls)}
        return execute("TextEncodeJoyImageEdit", clip, PROMPT, vae, images)[0]
    positive = text()
    for control in controls:
        positive = execute("ReferenceLatent", positive, {"samples": vae.encode(control)})[0]
    return positive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pair(tmp_path)


@pytest.mark.parametrize("name", EDITS)
def test_the_condition_in_training_is_that_of_the_stock_nodes(name: str, folder: Path) -> None:
    e = Edit(name)
    [sample] = e.samples(scan_folder(folder, resolution=SIZE))
    mask = loaded(folder / "a-masklabel.png").mean(-1)
    graph = stock(e, [loaded(folder / "a-control.png")], loaded(folder / "a.png"), mask)
    want = e.sampled(graph, sample.latent)
    assert same(sample.conditioning, want) == []
    plain = e.sampled(comfy_nodes.CLIPTextEncode().encode(e.clip, PROMPT)[0], sample.latent)
    assert same(plain, want), "the control picture changes nothing"


def test_several_control_pictures_of_their_own_sizes_reach_the_network_in_order(folder: Path) -> None:
    picture(folder / "a-control-1.png", (192, 64), 2)
    picture(folder / "b.png", (SIZE, SIZE), 5)
    (folder / "b.txt").write_text(PROMPT)
    e = Edit("flux kontext")
    several, none = e.samples(scan_folder(folder, resolution=SIZE))
    controls = [loaded(folder / f"a-control{n}.png") for n in ("", "-1")]
    graph = stock(e, controls, controls[0], controls[0])
    assert same(several.conditioning, e.sampled(graph, several.latent)) == []
    shapes = [tuple(c.shape) for c in several.conditioning["ref_latents"].cond]
    assert shapes == [(1, 16, 16, 16), (1, 16, 8, 24)]
    assert "ref_latents" not in none.conditioning
    with torch.inference_mode(False), torch.no_grad(), borrowed(e.patcher) as denoiser:
        x_t, sigma = torch.stack([several.latent, none.latent]), torch.tensor([0.5, 0.5])
        both = denoiser.predict(x_t, sigma, [several.conditioning, none.conditioning])
        alone = denoiser.predict(x_t[:1], sigma[:1], [several.conditioning])
    assert relative(both[:1], alone) < 1e-5


def test_three_pictures_are_numbered_for_qwen_image_edit_plus(folder: Path) -> None:
    for i in (1, 2, 3):
        picture(folder / f"a-control-{i}.png", (SIZE, 64 * i), i)
    e = Edit("qwen edit plus")
    said: list[Event] = []
    dataset = suited(scan_folder(folder, resolution=SIZE), e.patcher, e.clip, said.append)
    assert [n.message for n in said if isinstance(n, Notice)] == [
        "QwenImage takes 3 control pictures at most; the first are used of a.png"
    ]
    [sample] = e.samples(dataset)
    controls = [loaded(folder / f"a-control{n}.png") for n in ("", "-1", "-2")]
    graph = stock(e, controls, controls[0], controls[0])
    assert same(sample.conditioning, e.sampled(graph, sample.latent)) == []


def test_the_first_qwen_image_edit_is_trained_with_its_own_node_by_choice(folder: Path) -> None:
    e = Edit("qwen edit plus")
    picture(folder / "a-control-1.png", (SIZE, SIZE), 7)
    choices = Choices(edit_node="TextEncodeQwenImageEdit")
    said: list[Event] = []
    dataset = suited(scan_folder(folder, resolution=SIZE), e.patcher, e.clip, said.append, choices)
    assert any("QwenImage takes 1 control pictures at most" in str(n) for n in said)
    [sample] = e.samples(dataset, choices=choices)
    control = loaded(folder / "a-control.png")
    graph = execute("TextEncodeQwenImageEdit", e.clip, PROMPT, e.vae, control)[0]
    assert same(sample.conditioning, e.sampled(graph, sample.latent)) == []
    [plus] = e.samples(dataset)
    assert same(sample.conditioning, plus.conditioning), "both nodes give the same"
    said.clear()
    suited(dataset, Edit("flux kontext").patcher, Edit("flux kontext").clip, said.append, choices)
    assert any("edit_node TextEncodeQwenImageEdit is not used: Flux is no edit model" in str(n) for n in said)


def test_the_area_to_paint_is_given_with_a_loss_that_is_whole(folder: Path) -> None:
    """masked off: the mask says what the network paints, and no more which part of the loss counts."""
    e = Edit("sd15 inpaint")
    masks = {}
    for masked in (True, False):
        config = ObjectiveConfig(masked=masked)
        [sample] = e.samples(scan_folder(folder, resolution=SIZE), TrainConfig(objective=config))
        with torch.inference_mode(False), borrowed(e.patcher) as denoiser:
            objective = Objective(config=config, prior=PriorConfig(), denoiser=denoiser, adapter=None)  # type: ignore[arg-type]
            drawn = objective.draw([sample], stream(0, "test"))
        masks[masked] = drawn.mask
        painted = sample.conditioning["c_concat"].cond[:, :1]
        assert 0 < painted.mean() < 1
    assert masks[True] is not None
    assert masks[False] is None


def test_a_control_picture_of_another_shape_is_cut_evenly_where_it_lies_beside_the_noise(
    folder: Path,
) -> None:
    picture(folder / "a-control.png", (2 * SIZE, SIZE), 1)
    e = Edit("sd15 pix2pix")
    said: list[Event] = []
    dataset = suited(scan_folder(folder, resolution=SIZE), e.patcher, e.clip, said.append)
    assert any("another shape than their picture" in str(n) and "a.png" in str(n) for n in said)
    [sample] = e.samples(dataset)
    control = loaded(folder / "a-control.png")[:, :, SIZE // 2 : -SIZE // 2]
    graph = stock(e, [control], control, control)
    assert same(sample.conditioning, e.sampled(graph, sample.latent)) == []


def test_an_inpaint_model_without_masks_gets_drawn_ones_each_a_sample_of_its_own(folder: Path) -> None:
    (folder / "a-masklabel.png").unlink()
    (folder / "a-control.png").unlink()
    e = Edit("sd15 inpaint")
    dataset = scan_folder(folder, resolution=SIZE)
    assert way_of(e.patcher).masks
    samples = e.samples(with_drawn_masks(dataset))
    assert len(samples) == MASKS == with_drawn_masks(dataset).shown
    masks = [s.conditioning["c_concat"].cond[:, :1] for s in samples]
    assert masks[0].min() == 1
    assert all(0 < m.mean() < 1 for m in masks[1:])
    assert len({m.numpy().tobytes() for m in masks}) == MASKS
    target, number = loaded(folder / "a.png"), 2
    mask = drawn_mask(dataset.records[0].digest, number, (SIZE, SIZE))[None]
    graph = stock(e, [target], target, mask)
    assert same(samples[number].conditioning, e.sampled(graph, samples[number].latent)) == []


@pytest.mark.parametrize("name", ["boogu", "mage", "qwen edit plus"])
def test_a_dropped_caption_is_encoded_as_the_stock_nodes_encode_what_is_not_wanted(
    name: str, folder: Path
) -> None:
    e = Edit(name)
    config = TrainConfig(objective=ObjectiveConfig(caption_dropout=0.5))
    [sample] = e.samples(scan_folder(folder, resolution=SIZE), config)
    controls = [loaded(folder / "a-control.png")]
    if name == "boogu":
        negative = execute("TextEncodeBooguEdit", e.clip, PROMPT, "", e.vae, {"image_1": controls[0]})[1]
        assert e.clip.shown[-1] == []  # its encoder sees nothing then
    elif name == "mage":
        negative = execute(
            "TextEncodeMageFlowEdit",
            e.clip,
            PROMPT,
            "",
            e.vae,
            {"image_1": controls[0]},
            width=SIZE,
            height=SIZE,
        )[1]
    else:
        negative = execute("TextEncodeQwenImageEditPlus", e.clip, "", e.vae, controls[0])[0]
    assert same(sample.empty, e.sampled(negative, sample.latent)) == []


def test_a_model_that_takes_no_control_pictures_says_so_and_trains_without(folder: Path) -> None:
    c = Case("sd15")
    said: list[Event] = []
    dataset = suited(scan_folder(folder, resolution=SIZE), c.patcher, None, said.append)
    assert [str(n.message) for n in said if isinstance(n, Notice)] == [
        "BaseModel takes no control pictures; those of 1 pictures are not used"
    ]
    assert [r.controls for r in dataset.records] == [()]


@pytest.mark.parametrize("name", ["chroma", "krea2", "z_image", "lumina2", "sd3", "wan21_image"])
def test_a_network_that_would_leave_them_out_takes_none(name: str) -> None:
    assert way_of(Case(name).patcher).name == "none"


def test_a_model_with_channels_for_a_control_picture_needs_one(folder: Path) -> None:
    e = Edit("sd15 pix2pix")
    (folder / "a-control.png").rename(folder / "b-control.png")
    picture(folder / "b.png", (SIZE, SIZE), 5)
    (folder / "b.txt").write_text(PROMPT)
    said: list[Event] = []
    dataset = suited(scan_folder(folder, resolution=SIZE), e.patcher, None, said.append)
    assert [r.name for r in dataset.records] == ["b.png"]
    assert any("left out, for they have none: a.png" in str(n) for n in said)
    (folder / "b-control.png").unlink()
    with pytest.raises(
        DatasetError, match="has input channels for a control picture and the dataset has none"
    ):
        suited(scan_folder(folder, resolution=SIZE), e.patcher, None, said.append)


@pytest.mark.parametrize("name", [name for name in EDITS if name != "longcat edit"])  # it is Flux's network
def test_gradients_with_control_pictures_equal_the_oracles(name: str, folder: Path) -> None:
    c = EditCase(name, folder)
    with adapted(c) as (denoiser, adapter):
        right = c.gradients(denoiser, adapter, torch.autograd.graph.allow_mutation_on_saved_tensors())
        assert right.isfinite().all()
        assert (right != 0).float().mean() > 0.8
        assert relative(c.gradients(denoiser, adapter), right) < 1e-5
        with checkpointed(denoiser.blocks, 1):
            assert relative(c.gradients(denoiser, adapter), right) < 1e-5
        before = c.loss(denoiser)
        c.conditioning = c.plain
        assert abs(c.loss(denoiser) - before) > 1e-6  # the network sees the control picture


@pytest.mark.parametrize(
    "name", ["sd15 inpaint", "sd15 pix2pix", "flux kontext", "flux fill", "qwen edit plus"]
)
def test_a_run_on_control_pictures_goes_to_the_end(name: str, folder: Path, tmp_path: Path) -> None:
    e = Edit(name)
    data = TrainingData(samples=e.samples(scan_folder(folder, resolution=SIZE)))
    config = TrainConfig(
        name="edit", steps=2, optimizer=OptimizerConfig(learning_rate=1e-2), memory=MemoryConfig(fit="manual")
    )
    result = train_engine(e.patcher, data, config, tmp_path / "out")
    tensors, _ = read_lora(result.path)
    ups = [t for n, t in tensors.items() if "lora_up" in n or "lora_B" in n]
    assert all(t.isfinite().all() for t in ups)
    moved = [float(t.abs().max() > 0) for t in ups]
    assert sum(moved) / len(moved) > 0.8  # a last block has text layers that lead nowhere


def test_a_node_that_this_comfyui_lacks_is_named() -> None:
    with pytest.raises(ModelError, match="this ComfyUI has no node TextEncodeNobody"):
        node_class("comfy_extras.nodes_qwen", "TextEncodeNobody")
    with pytest.raises(ModelError, match="update ComfyUI"):
        node_class("comfy_extras.nodes_nobody", "TextEncodeNobody")
