"""A workflow as the page saves it, converted by the node definitions of a real server, runs on it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from workbench.client import Client
from workbench.dev.server import Server
from workbench.workflow import override, to_prompt

from ..clips import write_clip
from .test_crash import PREVIEW
from .test_training import graph, pictures  # noqa: F401 - a fixture

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


WAN22 = {
    "diffusion_models": (
        "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
        "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
    ),
    "text_encoders": ("umt5_xxl_fp8_e4m3fn_scaled.safetensors",),
    "vae": ("wan_2.1_vae.safetensors",),
}


def test_two_stages_of_wan22_are_a_graph_that_the_server_accepts(server: Server, client: Client) -> None:
    """The model files are empty here, so the graph is validated whole and ends at its first loader."""
    for folder, names in WAN22.items():
        (server.base / "models" / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (server.base / "models" / folder / name).touch()
    write_clip(server.base / "input" / "my_clips" / "a.mp4", 9)
    workflow = json.loads((WORKFLOWS / "wan22_two_stages.json").read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, client.object_info())
    trained = [n["inputs"] for n in prompt.values() if n["class_type"] == "TrainLoRA"]
    assert len({n["model"][0] for n in trained}) == len({n["name"] for n in trained}) == 2
    assert [(prompt[n["objective"][0]]["inputs"]["t_min"], n["name"]) for n in trained] == [
        (0.875, "my_clips_high_noise"),
        (0, "my_clips_low_noise"),
    ]
    result = client.run(prompt)
    assert result.status == "error"
    assert "Loader" in str(result.error), result.error
    clips = {"26": {"class_type": "PreviewImage", "inputs": {"images": ["7", 1]}}}
    result = client.run({name: prompt[name] for name in ("6", "7")} | clips)
    assert result.status == "success", result.error
    assert "1 clip" in str(result.outputs["7"])


def test_the_steps_of_a_run_are_compared_and_the_best_one_draws(client: Client, pictures: str) -> None:  # noqa: F811
    """Without a judge: ComfyUI's loader of CLIP Vision knows networks of full size only."""
    trained = {
        key: node for key, node in graph(pictures, name="compared").items() if key in ("1", "2", "3", "4")
    }
    trained["6"] = {"class_type": "TrainPreview", "inputs": {**PREVIEW, "held_out": 1}}
    trained["4"]["inputs"]["preview"] = ["6", 0]
    result = client.run(trained)
    assert result.status == "success", result.error
    (trained_run,) = result.outputs["4"]["run"]
    run = f"compared/{Path(trained_run['run_dir']).name}"

    workflow = json.loads((WORKFLOWS / "compare_steps.json").read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, client.object_info())
    (judge,) = (key for key, node in prompt.items() if node["class_type"] == "CLIPVisionLoader")
    del prompt[judge]
    small = {"width": 64, "height": 64}
    override(prompt, "CheckpointLoaderSimple", ckpt_name="tiny-sd15.safetensors")
    override(prompt, "LoadDataset", folder=pictures, resolution=64)
    override(prompt, "EvaluateLoRA", run=run, steps=1, images_per_prompt=1, strengths="1", **small)
    override(prompt, "EmptyLatentImage", **small)
    override(prompt, "KSampler", steps=1)
    for node in prompt.values():
        node["inputs"].pop("clip_vision", None)
    result = client.run(prompt)
    assert result.status == "success", result.error
    keys = {node["class_type"]: key for key, node in prompt.items()}
    assert "held-out loss" in result.outputs[keys["EvaluateLoRA"]]["text"][0]
    assert result.outputs[keys["SaveImage"]]["images"]


SMALL = """
network_dim = 4
network_alpha = 2
network_train_unet_only = true
learning_rate = 1e-3
max_train_steps = 2
resolution = 64
"""


def test_a_config_of_kohyas_trains_in_the_workflow_of_recipes(client: Client, pictures: str) -> None:  # noqa: F811
    """And a wrong one is refused with its sentence, before anything runs."""
    workflow = json.loads((WORKFLOWS / "recipe.json").read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, client.object_info())
    override(prompt, "TrainingRecipe", recipe="[from config]", config=SMALL)
    override(prompt, "CheckpointLoaderSimple", ckpt_name="tiny-sd15.safetensors")
    override(prompt, "LoadDataset", folder=pictures)
    override(prompt, "TrainLoRA", name="by_recipe")
    small = {"width": 64, "height": 64, "steps": 1, "images_per_prompt": 1, "strengths": "1"}
    override(prompt, "CompareBaseline", **small)
    result = client.run(prompt)
    assert result.status == "success", result.error
    keys = {node["class_type"]: key for key, node in prompt.items()}
    (trained,) = result.outputs[keys["TrainLoRA"]]["run"]
    config = json.loads((Path(trained["run_dir"]) / "config.json").read_text(encoding="utf-8"))
    assert (config["steps"], config["adapter"]["rank"], config["adapter"]["alpha"]) == (2, 4, 2.0)
    assert (config["data"]["resolution"], config["optimizer"]["schedule"]) == (64, "constant")
    assert "kohya sd-scripts" in result.outputs[keys["TrainingRecipe"]]["text"][0]
    wrong = {"1": {"class_type": "TrainingRecipe", "inputs": {**prompt[keys["TrainingRecipe"]]["inputs"]}}}
    wrong["1"]["inputs"]["config"] = "network_dim = 4\nnetwork_alpha = 'one'"
    result = client.run(wrong)
    assert result.status == "error"
    assert "network_alpha is 'one', which is no number" in str(result.error)
