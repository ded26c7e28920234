"""A workflow as the page saves it, converted by the node definitions of a real server, runs on it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from workbench.client import Client
from workbench.workflow import override, to_prompt

Json = dict[str, Any]


def node(
    number: int, kind: str, inputs: dict[str, int], widgets: list[Any], outputs: str, **more: Any
) -> Json:
    """A node as the page writes it. `inputs` maps a name to the link that ends there."""
    return {
        "id": number,
        "type": kind,
        "mode": 0,
        "inputs": [{"name": name, "type": name.upper(), "link": link} for name, link in inputs.items()],
        "outputs": [{"name": kind, "type": kind} for kind in outputs.split()],
        "widgets_values": widgets,
        **more,
    }


def stock_workflow() -> Json:
    sampler = [7, "randomize", 2, 4.0, "euler", "normal", 1.0]  # "randomize" belongs to the seed
    sources = {"model": 1, "positive": 4, "negative": 5, "latent_image": 6}
    return {
        "version": 0.4,
        "nodes": [
            node(1, "CheckpointLoaderSimple", {}, ["?.safetensors"], "MODEL CLIP VAE"),
            node(2, "CLIPTextEncode", {"clip": 2}, ["a photo"], "CONDITIONING"),
            node(3, "EmptyLatentImage", {}, [64, 64, 1], "LATENT"),
            node(4, "KSampler", sources, sampler, "LATENT"),
            node(5, "VAEDecode", {"samples": 7, "vae": 3}, [], "IMAGE"),
            node(6, "ImageInvert", {"image": 8}, [], "IMAGE", mode=4),
            node(7, "SaveImage", {"images": 10}, ["workflow"], ""),
            node(8, "PreviewImage", {"images": 9}, [], "", mode=2),
            node(9, "MarkdownNote", {}, ["Read me"], ""),
            node(10, "Reroute", {"": 11}, [], "CONDITIONING"),
        ],
        "links": [
            [1, 1, 0, 4, 0, "MODEL"],
            [2, 1, 1, 2, 0, "CLIP"],
            [3, 1, 2, 5, 1, "VAE"],
            [4, 2, 0, 4, 1, "CONDITIONING"],
            [5, 10, 0, 4, 2, "CONDITIONING"],
            [6, 3, 0, 4, 3, "LATENT"],
            [7, 4, 0, 5, 0, "LATENT"],
            [8, 5, 0, 6, 0, "IMAGE"],
            [9, 5, 0, 8, 0, "IMAGE"],
            [10, 6, 0, 7, 0, "IMAGE"],
            [11, 2, 0, 10, 0, "CONDITIONING"],
        ],
    }


def test_saved_workflow_becomes_the_graph_that_the_page_would_queue(client: Client) -> None:
    prompt = to_prompt(stock_workflow(), client.object_info())
    assert set(prompt) == {"1", "2", "3", "4", "5", "7"}, "the others take no part"
    assert prompt["4"]["inputs"] == {
        "model": ["1", 0],
        "positive": ["2", 0],
        "negative": ["2", 0],
        "latent_image": ["3", 0],
        "seed": 7,
        "steps": 2,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    assert prompt["7"]["inputs"] == {"images": ["5", 0], "filename_prefix": "workflow"}


def test_converted_workflow_runs_on_the_server(client: Client) -> None:
    prompt = to_prompt(stock_workflow(), client.object_info())
    override(prompt, "CheckpointLoaderSimple", ckpt_name="tiny-sd15.safetensors")
    result = client.run(prompt)
    assert result.status == "success", result.error
    assert result.outputs["7"]["images"]


WORKFLOWS = Path(__file__).parents[2] / "workflows"


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_templates_serve_each_example_workflow_with_its_picture(client: Client, name: str) -> None:
    """A folder named `examples` or the like beside workflows/ would be searched in its place."""

    def fetched(path: str) -> bytes:
        with urllib.request.urlopen(f"{client.url}/api/workflow_templates{path}", timeout=30) as answer:
            return answer.read()

    assert name in json.loads(fetched(""))["in-graph-lora"]
    for file in (f"{name}.json", f"{name}.jpg"):
        assert fetched(f"/in-graph-lora/{file}") == (WORKFLOWS / file).read_bytes()
