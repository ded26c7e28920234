"""Textual Inversion on a real server."""

from __future__ import annotations

import io
import json
from pathlib import Path
from urllib.request import urlopen

from PIL import Image

from .test_training import graph, pictures  # noqa: F401


def test_an_embedding_alone_is_found_by_its_name_in_the_graph_that_trains_it(server, client, pictures):  # noqa: F811
    """The same picture by its name and by the word on Apply LoRA's CLIP; another one by the word alone."""
    vectors = {
        "placeholder": "",
        "initial_word": "toy",
        "vectors": 2,
        "learning_rate": 0.1,
        "with_lora": False,
    }
    prompt = graph(pictures, name="live_words", embedding=["20", 0])
    prompt["20"] = {"class_type": "TextualInversion", "inputs": vectors}
    prompt["5"]["inputs"]["clip"] = ["1", 1]
    texts = {
        "by name": ["5", "embedding:live_words"],
        "by the word": ["5", "aawxbc"],
        "without": ["1", "aawxbc"],
    }
    for own in ("6", "8", "9", "10"):
        del prompt[own]
    for i, (clip, text) in enumerate(texts.values()):
        encode, sample, decode, save = (f"{30 + 10 * i + k}" for k in range(4))
        prompt[encode] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [clip, 1], "text": text}}
        prompt[sample] = {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": [encode, 0], "negative": [encode, 0], "latent_image": ["7", 0],
                "seed": 1, "denoise": 1.0, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
                "scheduler": "normal",
            },
        }  # fmt: skip
        prompt[decode] = {"class_type": "VAEDecode", "inputs": {"samples": [sample, 0], "vae": ["1", 2]}}
        prompt[save] = {
            "class_type": "SaveImage",
            "inputs": {"images": [decode, 0], "filename_prefix": "words"},
        }
    done = client.run(prompt)
    assert done.status == "success", done.error
    (run,) = done.outputs["4"]["run"]
    assert Path(run["lora_path"]) == server.base / "output" / "embeddings" / "live_words.safetensors"
    drawn = [
        Image.open(io.BytesIO(client.image(done.outputs[f"{33 + 10 * i}"]["images"][0]))).tobytes()
        for i in range(len(texts))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    with urlopen(f"{server.url}/embeddings", timeout=30) as answer:
        assert "live_words" in json.load(answer)
