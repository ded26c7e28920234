"""Image Framing, Join Datasets and Dataset Report, run by ComfyUI's executor, and what is trained then."""

from __future__ import annotations

import zipfile

import folder_paths
import pytest
import torch
from comfy import sd1_clip
from comfy.text_encoders import pixart_t5
from PIL import Image

import nodes as comfy_nodes
from in_graph_lora.nodes.dataset_report import DatasetReport
from in_graph_lora.nodes.image_framing import ImageFraming, colour, numbers
from in_graph_lora.nodes.join_datasets import JoinDatasets
from in_graph_lora.trainer.config import (
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.framing import Framing
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.host.token_count import token_count
from in_graph_lora.trainer.host.training import train_on_loaded

from .loaded import Loaded, encoded, write_pictures
from .test_dataset_nodes import Sink, comfy, folder, load, sink  # noqa: F401  fixtures

FRAMING = {
    "resolutions": "",
    "crop": "focus",
    "crops": 1,
    "flip": False,
    "upscaling": "allow",
    "step": "64",
    "color_jitter": 0.0,
    "color_variants": 1,
    "background": "#ffffff",
    "alpha_mask": False,
    "framing_seed": 0,
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for node in (ImageFraming, JoinDatasets, DatasetReport):
        monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, node.__name__, node)


def framing(**inputs):
    return {"class_type": "ImageFraming", "inputs": {**FRAMING, **inputs}}


def test_framing_goes_through_load_dataset_to_every_record(comfy, folder):  # noqa: F811
    prompt = {
        "0": framing(resolutions="256, 512", flip=True, background="gray", step="16", crop="none"),
        "1": load(folder=str(folder), framing=["0", 0]),
        "2": sink(["1", 0]),
    }
    _, shown = comfy(prompt)
    [(dataset, _)] = Sink.got
    wanted = Framing(resolutions=(256, 512), flip=True, background=(128, 128, 128), step=16, crop="none")
    assert {r.framing for r in dataset.records} == {wanted}
    assert dataset.shown == 3 * 2 * 2
    assert "enlarged" in shown["1"]["text"][0]


def test_refused_pictures_are_named_on_the_node(comfy, folder):  # noqa: F811
    Image.new("RGB", (900, 900)).save(folder / "large.png")
    prompt = {
        "0": framing(upscaling="refuse"),
        "1": load(folder=str(folder), framing=["0", 0]),
        "2": sink(["1", 0]),
    }
    _, shown = comfy(prompt)
    assert [r.name for r in Sink.got[0][0].records] == ["large.png"]
    assert shown["1"]["text"][0].count("refuses to enlarge") == 3


def test_a_zip_and_subfolders_and_masks_are_read_by_the_node(comfy, folder, tmp_path_factory):  # noqa: F811
    packed = tmp_path_factory.mktemp("packed") / "set.zip"
    with zipfile.ZipFile(packed, "w") as z:
        for path in folder.iterdir():
            z.write(path, f"wrapped/deep/{path.name}")
    masks = tmp_path_factory.mktemp("masks")
    Image.new("L", (400, 300), 255).save(masks / "img0.png")
    prompt = {
        "1": load(folder=str(packed), subfolders=True, mask_folder=str(masks)),
        "2": sink(["1", 0]),
    }
    comfy(prompt)
    [(dataset, _)] = Sink.got
    assert [(r.name, r.caption, r.mask is not None) for r in dataset.records] == [
        ("img0.png", "a red square", True),
        ("img1.png", "", False),
        ("img2.png", "", False),
    ]
    unpacked = f"{folder_paths.get_output_directory()}/in-graph-lora/unpacked"
    assert all(str(r.path).startswith(unpacked) for r in dataset.records)
    ran, _ = comfy(prompt)
    assert ran == []
    Image.new("L", (400, 300), 9).save(masks / "img0.png")
    ran, _ = comfy(prompt)
    assert ran == ["1", "2"]


def test_joined_datasets_and_their_report(comfy, folder):  # noqa: F811
    prompt = {
        "1": load(folder=str(folder)),
        "2": load(folder=str(folder), resolution=256, repeats=3),
        "3": {
            "class_type": "JoinDatasets",
            "inputs": {"dataset_a": ["1", 0], "dataset_c": ["2", 0], "weights": "1, .5", "repeats": "2 1"},
        },
        "4": {"class_type": "DatasetReport", "inputs": {"dataset": ["3", 0]}},
        "5": sink(["3", 0], caption=["4", 1]),
    }
    _, shown = comfy(prompt)
    [(dataset, text)] = Sink.got
    assert [(r.repeats, r.weight, r.framing.resolutions) for r in dataset.records] == [
        *[(2, 1, ())] * 3,
        *[(3, 0.5, (256,))] * 3,
    ]
    assert "3 pictures are there twice: img0.png is img0.png" in shown["3"]["text"][0]
    assert "| instance | 6 | 15 |" in text
    assert shown["4"]["text"] == [text]
    assert shown["4"]["images"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: numbers("512, big"), "resolutions: 'big' is no whole number"),
        (lambda: numbers("5.5"), "'5.5' is no whole number"),
        (lambda: colour("reddish"), "background: 'reddish' is no colour"),
        (lambda: JoinDatasets.execute(weights="1, x"), "weights: 'x' is no number"),
        (lambda: JoinDatasets.execute(weights="0"), "weights is '0'; use numbers above 0"),
        (lambda: JoinDatasets.execute(repeats="1.5"), "repeats: '1.5' is no number"),
        (lambda: JoinDatasets.execute(repeats="0"), "repeats is '0'"),
    ],
)
def test_what_is_typed_wrong_is_one_sentence(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_typed_lists_take_every_comma():
    assert numbers("512，768; 1024 ") == (512, 768, 1024)
    assert numbers("  ") == ()
    assert colour(" #102030 ") == (16, 32, 48)


class Clip:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def tokenize(self, text, **options):
        return self.tokenizer.tokenize_with_weights(text, **options)


def test_captions_are_counted_in_the_tokens_of_the_text_encoder():
    counted = token_count(Clip(sd1_clip.SD1Tokenizer()))
    assert counted.limit == 75
    assert [counted.tokens(t) for t in ("", "a cat", "cat " * 75, "cat " * 100)] == [0, 2, 75, 100]
    counted = token_count(Clip(pixart_t5.PixArtTokenizer()))
    assert counted.limit == 0
    assert counted.tokens("a cat") >= 2


@pytest.mark.slow
def test_every_view_is_a_sample_and_is_trained(loaded: Loaded, output, tmp_path):
    pictures = write_pictures(tmp_path, [(160, 96), (96, 160)])
    framing = Framing(resolutions=(64, 128), crop="random", crops=2, flip=True)
    dataset = scan_folder(pictures, resolution=64, framing=framing)
    config = TrainConfig(
        name="test",
        steps=2,
        memory=MemoryConfig(fit="manual"),
        data=DataConfig(resolution=64, batch_size=2),
        objective=ObjectiveConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )
    with torch.inference_mode(False):
        data = encoded(loaded, dataset, config)
    assert sum(s.repeats for s in data.samples) == dataset.shown == 2 * 2 * 2 * 2
    assert all(s.view is not None for s in data.samples)
    latents = {s.latent.numpy().tobytes() for s in data.samples}
    assert len(latents) > dataset.shown / 2
    with torch.inference_mode():
        result = train_on_loaded(
            loaded.model, loaded.clip, loaded.vae, dataset, config, lambda event: None, new_run=True
        )
    assert len(result.losses) == 2
