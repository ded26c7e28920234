"""Custom Diffusion on a real server: trained in the graph, used by ComfyUI's own Load LoRA."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from workbench.client import Client
from workbench.workflow import to_prompt

from .test_training import graph, pictures  # noqa: F401
from .test_workflow import WORKFLOWS, override

CUSTOM = {
    "kind": "full", "targets": "kv", "target_regex": "", "dropout": 0.0, "init": "gaussian",
    "rank_by_block": "", "lr_by_block": "", "start_from": "[a new LoRA]", "start_alpha": 0.0,
    "file_names": "comfyui", "blocks": "", "hold_first_token": True,
}  # fmt: skip


def pixels(client: Client, saved: dict[str, str]) -> bytes:
    return Image.open(io.BytesIO(client.image(saved))).tobytes()


@pytest.fixture(scope="module")
def trained(server, pictures):  # noqa: F811
    """The picture by Apply LoRA, and what the run left."""
    with Client(server.url) as client:
        prompt = graph(pictures, name="live_custom", learning_rate=0.05)
        prompt["20"] = {"class_type": "LoRAAdapter", "inputs": CUSTOM}
        prompt["4"]["inputs"]["adapter"] = ["20", 0]
        for own in ("11", "12", "13"):
            del prompt[own]
        done = client.run(prompt)
        assert done.status == "success", done.error
        yield prompt, done


def test_the_file_holds_whole_keys_and_values_and_load_lora_draws_the_same_picture(trained, client):
    prompt, done = trained
    (run,) = done.outputs["4"]["run"]
    with safe_open(run["lora_path"], framework="pt") as file:
        keys = list(file.keys())
        assert json.loads(file.metadata()["ss_network_args"])["algo"] == "full"
    assert keys
    assert all(key.endswith(("attn2_to_k.diff", "attn2_to_v.diff")) for key in keys)
    rest = {key: prompt[key] for key in ("1", "6", "7", "8", "9", "10")}
    rest["5"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": Path(run["lora_path"]).name, "strength_model": 1.0},
    }
    drawn = {"Apply LoRA": pixels(client, done.outputs["10"]["images"][0])}
    for strength in (1.0, 0.0):
        loader = {**rest["5"], "inputs": {**rest["5"]["inputs"], "strength_model": strength}}
        again = client.run({**rest, "5": loader})
        assert again.status == "success", again.error
        drawn[f"Load LoRA {strength}"] = pixels(client, again.outputs["10"]["images"][0])
    assert drawn["Apply LoRA"] == drawn["Load LoRA 1.0"] != drawn["Load LoRA 0.0"]


def test_the_workflow_trains_a_word_and_the_layers_at_once(server, client, pictures):  # noqa: F811
    workflow = json.loads((WORKFLOWS / "custom_diffusion.json").read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, client.object_info())
    override(prompt, "CheckpointLoaderSimple", ckpt_name="tiny-sd15.safetensors")
    override(prompt, "LoadDataset", folder=pictures, resolution=64, class_folder=pictures)
    override(prompt, "PriorPreservation", class_images=2, steps=1)
    override(prompt, "TextualInversion", initial_word="toy")
    override(prompt, "TrainLoRA", steps=2)
    override(prompt, "CompareBaseline", width=64, height=64, steps=1)
    result = client.run(prompt)
    assert result.status == "success", result.error
    keys = {node["class_type"]: key for key, node in prompt.items()}
    (run,) = result.outputs[keys["TrainLoRA"]]["run"]
    config = json.loads((Path(run["run_dir"]) / "config.json").read_text(encoding="utf-8"))
    assert config["adapter"]["kind"] == "full"
    assert config["adapter"]["hold_first_token"]
    assert config["embedding"]["placeholder"] == "aawxbc"
    assert config["prior"]["method"] == "class_images"
    files = {path.name for path in Path(run["lora_path"]).parent.iterdir()}
    assert len([name for name in files if name.endswith(".safetensors")]) >= 2
    assert result.outputs[keys["SaveImage"]]["images"]
