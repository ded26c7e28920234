"""The server, the client and the generated checkpoint, on a graph of stock nodes only."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from workbench.client import Client, Prompt, PromptRejected


def coarse(picture: Image.Image) -> np.ndarray:
    """Brightness and colour in 8 by 6 fields, 0 to 255."""
    return np.asarray(picture.resize((8, 6), Image.Resampling.BOX), dtype=float)


def stock_graph(steps: int = 2, size: int = 64) -> Prompt:
    """Text to picture with nodes that every ComfyUI has."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sd15.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a photo"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": size, "height": size, "batch_size": 1}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0],
                "seed": 1, "steps": steps, "cfg": 4.0,
                "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "harness"}},
    }  # fmt: skip


def test_generated_checkpoint_loads_and_samples_a_finite_picture(client: Client) -> None:
    result = client.run(stock_graph())
    assert result.status == "success", result.error
    (saved,) = result.outputs["6"]["images"]
    picture = Image.open(io.BytesIO(client.image(saved))).convert("RGB")
    assert picture.size == (64, 64)
    darkest, brightest = picture.convert("L").getextrema()
    assert brightest - darkest > 20, "NaN would be saved as one colour"


def test_events_show_each_step_of_the_sampler(client: Client) -> None:
    result = client.run(stock_graph(steps=3))
    steps = [event["value"] for event in result.of_type("progress") if event["node"] == "4"]
    assert steps[-1] == 3, steps  # the server leaves some out when they come fast
    assert steps == sorted(steps)


def test_interrupt_ends_the_prompt_as_interrupted(client: Client) -> None:
    prompt_id = client.queue(stock_graph(steps=2000))
    stopped = []

    def stop_at_the_first_step(event) -> None:
        if event.type == "progress" and not stopped:
            stopped.append(event)
            client.interrupt()

    assert client.wait(prompt_id, 60, stop_at_the_first_step).status == "interrupted"


def test_a_failing_node_is_reported_with_its_id_and_message(client: Client) -> None:
    graph = stock_graph()
    graph["1"]["inputs"]["ckpt_name"] = "missing.safetensors"
    with pytest.raises(PromptRejected, match=r"node 1 \(CheckpointLoaderSimple\).*missing"):
        client.queue(graph)


def test_generated_autoencoder_gives_a_picture_back_blurred(client: Client, server) -> None:
    picture = Image.radial_gradient("L").resize((128, 96))
    Image.merge("RGB", [picture, picture.rotate(180), picture]).save(server.base / "input" / "gradient.png")
    graph: Prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sd15.safetensors"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}},
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "roundtrip"}},
    }
    result = client.run(graph)
    (saved,) = result.outputs["5"]["images"]
    decoded = Image.open(io.BytesIO(client.image(saved))).convert("RGB")
    original = Image.open(server.base / "input" / "gradient.png")
    assert abs(coarse(decoded) - coarse(original)).max() < 40
