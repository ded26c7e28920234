"""Control pictures: what reaches the network is what ComfyUI's own nodes build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_extras.nodes_boogu import TextEncodeBooguEdit
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_ip2p import InstructPixToPixConditioning
from comfy_extras.nodes_joyimage import TextEncodeJoyImageEdit
from comfy_extras.nodes_mage import TextEncodeMageFlowEdit
from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus

import nodes as comfy_nodes
from in_graph_lora.trainer.data.scan import scan_folder

from .edit_case import EDITS, SIZE, Edit, loaded, picture, same

PROMPT = "make it blue"
LATENT = tuple(EDITS)


def stock(e: Edit, controls: list[torch.Tensor], target: torch.Tensor, mask: torch.Tensor) -> list[Any]:
    """The positive conditioning that a graph of stock nodes has."""
    clip, vae, name = e.clip, e.vae, e.name
    text = lambda: comfy_nodes.CLIPTextEncode().encode(clip, PROMPT)[0]  # noqa: E731
    if name in ("sd15 inpaint", "flux fill"):
        positive = text()
        return comfy_nodes.InpaintModelConditioning().encode(positive, positive, controls[0], vae, mask)[0]
    if name in ("sd15 pix2pix", "sdxl pix2pix", "flux depth", "hidream e1"):
        positive = text()
        return InstructPixToPixConditioning.execute(positive, positive, controls[0], vae)[0]
    if name == "qwen edit plus":
        images = {f"image{i}": c for i, c in enumerate(controls, 1)}
        return TextEncodeQwenImageEditPlus.execute(clip, PROMPT, vae, **images)[0]
    if name == "longcat edit":
        return TextEncodeQwenImageEdit.execute(clip, PROMPT, vae, controls[0])[0]
    if name == "boogu":
        images = {f"image_{i}": c for i, c in enumerate(controls, 1)}
        return TextEncodeBooguEdit.execute(clip, PROMPT, "", vae, images)[0]
    if name == "mage":
        images = {f"image_{i}": c for i, c in enumerate(controls, 1)}
        return TextEncodeMageFlowEdit.execute(clip, PROMPT, "", vae, images, width=SIZE, height=SIZE)[0]
    if name == "joyimage":
        images = {f"image{i}": c for i, c in enumerate(controls)}
        return TextEncodeJoyImageEdit.execute(clip, PROMPT, vae, images)[0]
    positive = text()
    for control in controls:
        positive = ReferenceLatent.execute(positive, {"samples": vae.encode(control)})[0]
    return positive


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "a.png", (SIZE, SIZE), 0)
    picture(tmp_path / "a-control.png", (SIZE, SIZE), 1)
    picture(tmp_path / "a-masklabel.png", (SIZE, SIZE), 3)
    (tmp_path / "a.txt").write_text(PROMPT)
    return tmp_path


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
