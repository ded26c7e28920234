"""CompareBaseline and ApplyLoRA against the stock sampler."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

import nodes as comfy_nodes
from in_graph_lora.nodes.apply_lora import ApplyLoRA
from in_graph_lora.nodes.compare_baseline import CompareBaseline
from in_graph_lora.trainer.errors import ConfigError, LoraFileError
from in_graph_lora.trainer.pictures.comparison import parse_strengths

from .loaded import Loaded, train, write_pictures

PROMPTS = ["a photo of a cat", "一张照片"]


@pytest.fixture(scope="module")
def lora(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("compare")
    tensors = train(loaded, write_pictures(folder / "in", [(64, 64)] * 2), folder, steps=2).lora
    return {k: v * 20 if "lora_up" in k else v for k, v in tensors.items()}  # to be seen after two steps


def stock(loaded: Loaded, model, prompt: str, seed: int) -> torch.Tensor:
    """The picture of CLIPTextEncode, EmptyLatentImage, KSampler and VAEDecode."""
    encode = comfy_nodes.CLIPTextEncode()
    (positive,), (negative,) = encode.encode(loaded.clip, prompt), encode.encode(loaded.clip, "bad")
    (latent,) = comfy_nodes.EmptyLatentImage().generate(64, 64, 1)
    (sample,) = comfy_nodes.KSampler().sample(
        model, seed, 2, 3.0, "euler", "normal", positive, negative, latent
    )
    return comfy_nodes.VAEDecode().decode(loaded.vae, sample)[0]


def compare(*given, **settings):
    return output_of(*given, **settings).args


def output_of(loaded: Loaded, lora, strengths: str = "0, 1", prompts: str = "\n".join(PROMPTS)):
    with torch.inference_mode():
        return CompareBaseline.execute(
            loaded.model, loaded.clip, loaded.vae, lora, prompts, "bad", 7, 2, 2, 3.0, "euler", "normal",
            64, 64, strengths,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def hidden(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    monkeypatch.setattr(
        CompareBaseline,
        "hidden",
        type("Hidden", (), dict.fromkeys(("prompt", "extra_pnginfo")) | {"unique_id": "1"}),
        raising=False,
    )


@torch.inference_mode()
def test_both_columns_equal_the_stock_sampler_bit_for_bit(loaded, lora):
    grid, baseline, trained, report = compare(loaded, lora)
    shots = [(prompt, 7 + i) for prompt in PROMPTS for i in range(2)]
    without = torch.cat([stock(loaded, loaded.model, *shot) for shot in shots])
    patched, _ = ApplyLoRA.execute(loaded.model, 1.0, 1.0, lora=lora).args
    with_lora = torch.cat([stock(loaded, patched, *shot) for shot in shots])
    assert torch.equal(baseline, without)
    assert torch.equal(trained, with_lora)
    assert not torch.equal(baseline, trained)
    assert grid.shape[1] > 4 * 64
    assert "without LoRA" in report


def test_strength_zero_equals_the_run_without_a_lora_bit_for_bit(loaded, lora):
    _, baseline, trained, _ = compare(loaded, lora, strengths="0, 0")
    assert torch.equal(baseline, trained)
    _, baseline_again, _, _ = compare(loaded, lora, strengths="1, 0")
    assert torch.equal(baseline, baseline_again)


def test_every_strength_gets_a_column_and_a_number(loaded, lora):
    grid, _, _, report = compare(loaded, lora, strengths="0, 0.5, 1", prompts="a cat")
    assert grid.shape[2] > 3 * 64
    row = report.splitlines()[6].split("|")
    moved = [float(x) for x in row[3:6]]
    assert moved[0] == 0 < moved[1] < moved[2]


@pytest.mark.parametrize("text", ["", "a", "0, nan", "1,,x"])
def test_bad_strengths_are_named(text):
    with pytest.raises(ConfigError, match="strengths is"):
        parse_strengths(text)


def test_the_baseline_always_comes_first():
    assert parse_strengths("1, 0.5") == [0.0, 1.0, 0.5]
    assert parse_strengths("0，1") == [0.0, 1.0]


def test_a_prompt_with_what_is_no_character_is_drawn_and_told(loaded, lora):
    with torch.inference_mode():
        output = CompareBaseline.execute(
            loaded.model, loaded.clip, loaded.vae, lora, "a \ud83d cat", "", 7, 1, 1, 1.0, "euler", "normal",
            64, 64, "0",
        )  # fmt: skip
    told, report = output.ui["text"]
    assert told == "� replaces what is no character in prompts; type it again, or save it as UTF-8"
    assert "| a � cat |" in report


def test_empty_prompts_are_refused(loaded, lora):
    with pytest.raises(ConfigError, match="prompts is empty"):
        compare(loaded, lora, prompts=" \n ")


def test_apply_lora_without_a_lora_says_what_to_connect(loaded):
    with pytest.raises(LoraFileError, match="connect lora or choose a file"):
        ApplyLoRA.execute(loaded.model, 1.0, 1.0)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "missing.safetensors"])
def test_apply_lora_reads_only_files_of_the_list(loaded, name):
    with pytest.raises(LoraFileError, match="not in ComfyUI's list"):
        ApplyLoRA.execute(loaded.model, 1.0, 1.0, lora_name=name)


def test_each_picture_is_shown_as_itself_in_the_temp_folder(loaded, lora):
    output = output_of(loaded, lora, "0, 0.5, 1")
    shown = output.ui["comparison"]
    _, baseline, trained, _ = output.args
    assert [(s["prompt"], s["seed"], s["strength"]) for s in shown[:4]] == [
        (PROMPTS[0], "7", 0.0), (PROMPTS[0], "7", 0.5), (PROMPTS[0], "7", 1.0), (PROMPTS[0], "8", 0.0),
    ]  # fmt: skip
    assert len(shown) == 3 * len(baseline)
    assert {s["type"] for s in shown} == {"temp"}
    for picture, tensor in ((shown[0], baseline[0]), (shown[-1], trained[-1])):
        path = Path(folder_paths.get_temp_directory()) / picture["subfolder"] / picture["filename"]
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), (255 * tensor.numpy()).astype(np.uint8))
