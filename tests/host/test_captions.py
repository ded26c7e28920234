"""What becomes of captions between a dataset and the text encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.events import Notice
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.sample import encode_prompt
from in_graph_lora.trainer.host.text_model import borrowed_clip
from in_graph_lora.trainer.host.training import train_on_loaded

from .loaded import Loaded, write_pictures

pytestmark = [pytest.mark.usefixtures("output"), pytest.mark.slow]

LONE = "\ud83d"
TRAINED_TEXT = OptimizerConfig(learning_rate=1e-3, text_encoder_lr=1e-3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64)] * 2)


def run(loaded: Loaded, pictures: Path, captions: list[str], *, trigger: str = "", **sections):
    """(result, what was said) of a short training with these captions."""
    dataset = scan_folder(pictures, resolution=64)
    records = [r.with_caption(caption) for r, caption in zip(dataset.records, captions, strict=True)]
    dataset = replace(dataset.with_records(records), trigger=trigger)
    defaults = {
        "adapter": AdapterConfig(rank=2),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "data": DataConfig(resolution=64),
    }
    config = TrainConfig(**{"name": "test", "steps": 2, **defaults, **sections})
    said: list[str] = []

    def emit(event: object) -> None:
        if isinstance(event, Notice):
            said.append(event.message)

    with torch.inference_mode():
        result = train_on_loaded(loaded.model, loaded.clip, loaded.vae, dataset, config, emit, new_run=True)
    return result, said


@pytest.mark.parametrize("optimizer", [OptimizerConfig(learning_rate=1e-3), TRAINED_TEXT])
def test_texts_with_what_is_no_character_are_trained_drawn_and_saved_and_the_user_is_told(
    loaded, pictures, optimizer
):
    result, said = run(
        loaded,
        pictures,
        [f"a {LONE} toy", "a toy"],
        trigger=f"oh{LONE}wx",
        optimizer=optimizer,
        prior=PriorConfig(method="class_images", class_prompt=f"a {LONE}", class_images=1, steps=1),
        preview=PreviewConfig(prompts=(f"a {LONE} toy",), negative=LONE, every=2, steps=1, cfg=2.0),
    )
    assert said[0] == (
        "� replaces what is no character in class_prompt, negative, prompts and 2 more; type it again, or"
        " save it as UTF-8"
    )
    assert not [message for message in said if "failed" in message]
    assert result.previews is not None
    with safe_open(result.path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.trigger_phrase"] == "oh�wx"
    assert "a \\ufffd toy" in metadata["ss_tag_frequency"]


@pytest.mark.parametrize("optimizer", [OptimizerConfig(learning_rate=1e-3), TRAINED_TEXT])
def test_brackets_are_text_unless_syntax_is_asked_for(loaded, pictures, optimizer):
    def losses(toy: str, syntax: str) -> list[float]:
        data = DataConfig(resolution=64, caption_syntax=syntax)
        result, _ = run(loaded, pictures, [toy, toy], steps=1, optimizer=optimizer, data=data)
        return result.losses

    brackets = "a (red:1.8) toy"
    assert losses(brackets, "text") == losses(r"a \(red:1.8\) toy", "comfyui")
    assert losses(brackets, "comfyui") != losses(brackets, "text")


def test_the_cached_and_the_trained_text_encoder_get_the_same_tokens(loaded):
    texts = HostTextEncoder(loaded.clip, loaded.model)
    caption = "a (red:1.8) embedding:toy"
    latent = torch.zeros(4, 8, 8)
    with torch.inference_mode(False):
        cached = texts.encode(caption, latent)["c_crossattn"].cond
        with borrowed_clip(texts) as text, torch.no_grad():
            trained = text.condition(caption, latent)["c_crossattn"].cond
    assert torch.equal(cached, trained)
    with torch.inference_mode():
        prompt = encode_prompt(loaded.clip, r"a \(red:1.8\) embedding:toy")[0][0]
    assert torch.equal(cached, prompt)


@pytest.mark.parametrize("optimizer", [OptimizerConfig(learning_rate=1e-3), TRAINED_TEXT])
def test_a_caption_that_is_a_book_is_cut_told_and_trained(loaded, pictures, optimizer):
    book = "photo of a cat " * 7500
    result, said = run(loaded, pictures, [book, "a toy"], steps=1, optimizer=optimizer)
    (told,) = [message for message in said if "cut" in message]
    length = len(HostTextEncoder(loaded.clip, loaded.model).fitted(book))
    assert length < 5_000
    assert told == f"captions longer than can be encoded are cut: 0.png (112500 characters to {length})"
    with safe_open(result.path, framework="pt") as file:
        (tag, _) = json.loads(file.metadata()["ss_tag_frequency"])["dataset"]
    assert tag == book[:length].strip()


def test_a_class_prompt_that_is_a_book_is_cut_and_told(loaded, pictures):
    prior = PriorConfig(method="output_preservation", class_prompt="a cat " * 20_000)
    _, said = run(loaded, pictures, ["a toy", "a toy"], steps=1, prior=prior)
    assert any("are cut: class_prompt (120000 characters to " in message for message in said)
