"""Captions by folders of transformers: real classes, files and processors, with random weights."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from in_graph_lora.trainer.data.captioners import CaptionRequest
from in_graph_lora.trainer.data.vision_language import VisionLanguageCaptioner
from in_graph_lora.trainer.errors import ModelError

from ..tiny_captioners import TEXT_CHAT, blip, llava

pytestmark = pytest.mark.slow  # transformers takes seconds to import


class Interrupt(BaseException):
    pass


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    blip(root / "blip"), llava(root / "llava")
    return root


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def opened(folder: Path, request=None, check=lambda: None) -> VisionLanguageCaptioner:
    request = request or CaptionRequest(max_length=6, batch=2, prompt="a dog")
    return VisionLanguageCaptioner(
        folder, request, device=torch.device("cpu"), dtype=torch.float32, check=check
    )


def pictures(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 2, 2, 3), dtype=np.uint8)
    return [Image.fromarray(p).resize((40, 30), Image.Resampling.NEAREST) for p in pixels]


PICTURES = pictures(4)


@pytest.mark.parametrize("kind", ["blip", "llava"])
def test_a_folder_of_transformers_writes_captions_without_a_connection(models, no_network, kind):
    captioner = opened(models / kind)
    together = captioner.caption(PICTURES, 0)
    assert len(together) == 4
    assert len(set(together)) > 1, "it looks at the pictures"
    assert [captioner.caption([p], 0)[0] for p in PICTURES] == together
    assert captioner.caption(PICTURES, 1) == together, "without a temperature nothing is drawn"


@pytest.mark.parametrize("kind", ["blip", "llava"])
def test_a_temperature_draws_by_the_seed_alone(models, kind):
    captioner = opened(models / kind, CaptionRequest(max_length=12, temperature=1.5))
    before = torch.random.get_rng_state()
    drawn = {seed: captioner.caption(PICTURES[:1], seed) for seed in range(4)}
    assert captioner.caption(PICTURES[:1], 2) == drawn[2]
    assert len({text for (text,) in drawn.values()}) > 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_question_is_put_by_the_models_own_template_and_not_repeated(models):
    captioner = opened(models / "llava")
    assert captioner._text() == "<image> a dog a"
    assert "dog a" not in captioner.caption(PICTURES[:1], 0)[0][:8]


def test_a_template_for_plain_text_gets_plain_text(tmp_path):
    captioner = opened(llava(tmp_path / "joy", TEXT_CHAT))
    assert captioner._text() == "<image> a dog a"
    assert captioner.caption(PICTURES[:1], 0)[0].strip()


def test_max_length_bounds_what_is_written(models):
    short = opened(models / "llava", CaptionRequest(max_length=2)).caption(PICTURES[:1], 0)[0]
    assert len(short.split()) <= 2


def test_an_interrupt_reaches_a_model_that_writes(models):
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise Interrupt

    with pytest.raises(Interrupt):
        opened(models / "llava", CaptionRequest(max_length=100), check).caption(PICTURES, 0)
    assert len(calls) == 3


def broken(models: Path, tmp_path: Path, kind: str = "llava") -> Path:
    return Path(shutil.copytree(models / kind, tmp_path / "broken"))


def test_a_folder_that_lacks_weights_is_refused_by_name(models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = broken(models, tmp_path)
    weights = load_file(folder / "model.safetensors")
    dropped = next(name for name in weights if "q_proj" in name)
    del weights[dropped]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"broken: lacks 1 weights, such as .*q_proj"):
        opened(folder)


def test_weights_that_are_a_pickle_are_not_read(models, tmp_path):
    folder = broken(models, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights in safetensors"):
        opened(folder)


def test_code_in_a_folder_is_not_run(models, tmp_path, no_network):
    folder = broken(models, tmp_path)
    (folder / "modeling.py").write_text("raise SystemExit('code of the folder ran')")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "not_in_transformers",
        "auto_map": {
            name: f"modeling.{name}"
            for name in ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="needs code of its own, which is not run"):
        opened(folder)


@pytest.mark.parametrize("text", ["{", '{"model_type": "gpt2"}', '{"model_type": "no_such_model"}'])
def test_a_folder_that_transformers_cannot_read_is_one_sentence(tmp_path, no_network, text):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="model folder odd: "):
        opened(folder)
