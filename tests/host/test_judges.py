"""Judges of ComfyUI's real classes, small and random, and a transformers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.clip_vision
import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import nodes as comfy_nodes
from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.host.judges import ClipVisionJudge, FolderClassifier, FolderJudge, judge_of

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_channels": 3,
    "layer_norm_eps": 1e-5,
}
KINDS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {
        "hidden_act": "quick_gelu", "image_size": 28, "patch_size": 14, "projection_dim": 24
    },
    "siglip_vision_model": {"hidden_act": "gelu_pytorch_tanh", "image_size": 32, "patch_size": 16},
    "siglip2_vision_model": {
        "hidden_act": "gelu_pytorch_tanh", "image_size": -1, "patch_size": 16, "num_patches": 16
    },
    "dinov2": {"image_size": 28, "patch_size": 14, "use_swiglu_ffn": False, "num_attention_heads": 2},
    "dinov3": {
        "image_size": 32, "patch_size": 16, "num_register_tokens": 4, "rope_theta": 100.0,
        "use_gated_mlp": True, "gated_mlp_act": "silu",
    },
}  # fmt: skip


def clip_vision(kind: str, seed: int = 0) -> Any:
    made = comfy.clip_vision.ClipVisionModel({**SMALL, "model_type": kind, **KINDS[kind]})
    randomise(made.model, seed)
    return made


def randomise(network: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


FILES = {
    "clip_vision_model": {"num_hidden_layers": 24},
    "dinov2": {"num_hidden_layers": 24},
    "dinov3": {"num_hidden_layers": 32},
}
"""Kind → what its file is told by; that of SigLIP is told by its width, which is no small one."""


def from_file(kind: str, folder: Path, seed: int = 0) -> Any:
    """As Load CLIP Vision gives it, of a file with the layers of CLIP-L, DINOv2-L or DINOv3-H, but narrow."""
    whole = comfy.clip_vision.ClipVisionModel
    narrow = {**SMALL, **KINDS[kind], **FILES[kind]}
    made = whole({**narrow, "model_type": kind})
    randomise(made.model, seed)
    name = f"{kind}-{seed}.safetensors"
    save_file({k: v.contiguous() for k, v in made.get_sd().items()}, folder / name)

    def read(told: Any) -> Any:
        own = told if isinstance(told, dict) else json.loads(Path(told).read_text(encoding="utf-8"))
        assert own.get("model_type", "clip_vision_model") == kind, "ComfyUI knows the file"
        return whole({**own, **narrow})

    folder_paths.add_model_folder_path("clip_vision", str(folder))
    with patch.object(comfy.clip_vision, "ClipVisionModel", read):
        (loaded,) = comfy_nodes.CLIPVisionLoader().load_clip(name)
    return loaded


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.mark.parametrize("kind", KINDS)
def test_every_vision_model_of_comfyui_tells_pictures_apart(kind):
    judge = ClipVisionJudge(clip_vision(kind))
    two = pictures((64, 64), (64, 64))
    features = judge.see(two)
    assert features.shape == (2, 24 if kind == "clip_vision_model" else 32)
    assert features.isfinite().all()
    assert (features[0] - features[1]).abs().max() > 1e-3
    assert torch.allclose(judge.see(two[1:]), features[1:], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_several_sizes_are_seen_in_one_call(kind):
    judge = ClipVisionJudge(clip_vision(kind))
    mixed = pictures((64, 64), (96, 48), (40, 80))
    together = judge.see(mixed)
    alone = torch.cat([judge.see([picture]) for picture in mixed])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_load_clip_vision_has_read_is_a_judge(kind, tmp_path):
    judge = ClipVisionJudge(from_file(kind, tmp_path))
    features = judge.see(pictures((64, 64), (96, 48)))
    assert features.shape == (2, 24 if kind == "clip_vision_model" else 32)
    assert features.isfinite().all()
    assert (features[0] - features[1]).abs().max() > 1e-3
    assert judge.digest == ClipVisionJudge(from_file(kind, tmp_path)).digest


def test_the_features_are_those_of_the_stock_node():
    made = clip_vision("clip_vision_model")
    (picture,) = pictures((64, 64))
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)[None]
    with torch.inference_mode():
        stock = made.encode_image(pixels)["image_embeds"]
    assert torch.equal(ClipVisionJudge(made).see([picture]), stock.float())


def test_other_weights_have_another_digest():
    one, same, other = (ClipVisionJudge(clip_vision("dinov2", seed)).digest for seed in (0, 0, 1))
    assert one == same != other


def test_a_judge_that_cannot_read_says_what_to_choose():
    with pytest.raises(ModelError, match="has no text encoder; name a folder"):
        ClipVisionJudge(clip_vision("dinov3")).read(["a cat"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP with ComfyUI's own tokenizer files."""
    import comfy
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "tiny-clip"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 49408, "projection_dim": 24}
    vision = {**sizes, "image_size": 28, "patch_size": 14, "projection_dim": 24}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(path)
    CLIPTokenizer.from_pretrained(Path(comfy.__path__[0]) / "sd1_tokenizer").save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28).save_pretrained(path)
    return path


def test_a_transformers_folder_sees_and_reads_in_one_space(folder):
    judge = judge_of(clip_vision("dinov2"), folder)
    assert isinstance(judge, FolderJudge)
    assert judge.reads
    seen, read = judge.see(pictures((64, 64), (80, 40))), judge.read(["a cat", "a much longer text " * 40])
    assert seen.shape == read.shape == (2, 24)
    assert (read[0] - read[1]).abs().max() > 1e-4


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json; name a folder"):
        judge_of(None, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded .* choose another folder for judge_folder"):
        judge_of(None, tmp_path)


def vit(folder: Path, classes: int) -> Path:
    """A tiny random classifier."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    labels = {i: f"class {i}" for i in range(classes)}
    config = ViTConfig(**sizes, image_size=32, patch_size=16, id2label=labels, initializer_range=0.5)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_classifier_gives_a_number_for_each_class(tmp_path):
    classifier = FolderClassifier(vit(tmp_path / "vit", 5))
    logits = classifier.logits(pictures((64, 64), (80, 40)))
    assert logits.shape == (2, 5)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_what_is_no_classifier_is_named(folder, tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json; .*in classifier_folder"):
        FolderClassifier(tmp_path)
    with pytest.raises(ModelError, match="knows one class only"):
        FolderClassifier(vit(tmp_path / "one", 1))
