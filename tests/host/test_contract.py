"""Node ids, inputs and outputs are public: workflows are written against them."""

from __future__ import annotations

import asyncio

import pytest

import in_graph_lora
from in_graph_lora.nodes import NODES
from in_graph_lora.nodes.sockets import CATEGORY

CONTRACT = {
    "LoadDataset": (
        ["folder", "resolution", "repeats", "images", "captions", "class_folder"],
        ["TRAIN_DATASET", "IMAGE", "INT"],
    ),
    "CaptionImages": (
        ["dataset", "method", "trigger", "class_word", "template", "on_existing", "clip", "model_folder"],
        ["TRAIN_DATASET", "STRING"],
    ),
    "TrainLoRA": (
        [
            *["model", "clip", "vae", "dataset", "steps", "learning_rate", "rank", "alpha", "batch_size"],
            *["train_seed", "name", "adapter", "objective", "optimizer", "memory", "preview"],
            *["regularization", "existing_run", "caption_syntax"],
        ],
        ["LORA_MODEL", "STRING", "LOSS_MAP"],
    ),
    "ApplyLoRA": (
        ["model", "strength_model", "strength_clip", "clip", "lora", "lora_name", "file_alpha"],
        ["MODEL", "CLIP"],
    ),
    "CompareBaseline": (
        [
            *["model", "clip", "vae", "lora", "prompts", "negative", "seed", "images_per_prompt", "steps"],
            *["cfg", "sampler_name", "scheduler", "width", "height", "strengths"],
        ],
        ["IMAGE", "IMAGE", "IMAGE", "STRING"],
    ),
    "LoadRun": (["run", "step"], ["LORA_MODEL", "LOSS_MAP", "STRING", "INT"]),
}
OPTIONS = {
    "LoRAAdapter": "LORA_ADAPTER",
    "TrainObjective": "TRAIN_OBJECTIVE",
    "TrainOptimizer": "TRAIN_OPTIMIZER",
    "TrainMemory": "TRAIN_MEMORY",
    "TrainPreview": "TRAIN_PREVIEW",
    "PriorPreservation": "TRAIN_REGULARIZATION",
}
DEFAULTS = {
    "steps": 1000,
    "learning_rate": 1e-4,
    "rank": 16,
    "alpha": 0.0,
    "batch_size": 1,
    "train_seed": 0,
    "name": "my_lora",
}
SCHEMAS = {node.define_schema().node_id: node.define_schema() for node in NODES}


def test_comfyui_gets_exactly_the_nodes_of_the_contract():
    async def listed():
        return await (await in_graph_lora.comfy_entrypoint()).get_node_list()

    assert asyncio.run(listed()) == NODES
    assert set(SCHEMAS) == {*CONTRACT, *OPTIONS}


@pytest.mark.parametrize("node_id", CONTRACT)
def test_inputs_and_outputs_are_those_of_the_contract(node_id):
    inputs, outputs = CONTRACT[node_id]
    assert [i.id for i in SCHEMAS[node_id].inputs] == inputs
    assert [o.io_type for o in SCHEMAS[node_id].outputs] == outputs


@pytest.mark.parametrize("node_id", OPTIONS)
def test_an_option_node_makes_its_own_socket(node_id):
    assert [o.io_type for o in SCHEMAS[node_id].outputs] == [OPTIONS[node_id]]


def test_train_lora_has_the_defaults_of_the_contract():
    shown = {i.id: i.default for i in SCHEMAS["TrainLoRA"].inputs if i.id in DEFAULTS}
    assert shown == DEFAULTS


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_every_input_and_output_says_what_it_is(node_id):
    schema = SCHEMAS[node_id]
    assert schema.category == CATEGORY
    assert schema.description
    assert all(port.tooltip for port in [*schema.inputs, *schema.outputs])


def test_no_seed_of_training_is_randomised_by_the_page():
    ids = [i.id for i in SCHEMAS["TrainLoRA"].inputs]
    assert "seed" not in ids
    assert "noise_seed" not in ids
    seed = next(i for i in SCHEMAS["TrainLoRA"].inputs if i.id == "train_seed")
    assert not seed.as_dict().get("control_after_generate")


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_every_node_has_a_help_page_in_english_and_chinese(node_id, repo_root):
    assert (repo_root / "web" / "docs" / f"{node_id}.md").stat().st_size > 200
    assert (repo_root / "web" / "docs" / node_id / "zh.md").stat().st_size > 200
