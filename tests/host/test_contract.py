"""Node ids, inputs and outputs are public: workflows are written against them.

contract.json holds them all. IGL_WRITE_GOLDEN=1 writes it anew: read the diff before you commit it.
What workflows rely on may be added to, at the end, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import in_graph_lora
from in_graph_lora.nodes import NODES
from in_graph_lora.nodes.sockets import CATEGORY

SCHEMAS = {node.define_schema().node_id: node.define_schema() for node in NODES}
HOST_LISTS = ("sampler_name", "scheduler", "lora_name", "start_from", "run", "before", "after", "recipe")
"""Inputs whose choices ComfyUI or the user's folders decide."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
RANGE = ("min", "max", "step", "options", "multiline")


def described(schema: Any) -> dict[str, Any]:
    """What a workflow relies on, in order."""
    return {
        "inputs": [_input(port) for port in schema.inputs],
        "outputs": [{"type": port.io_type, "name": port.display_name} for port in schema.outputs],
    }


def _input(port: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": port.id, "type": port.get_io_type()}
    if port.optional:
        facts["optional"] = True
    if getattr(port, "default", None) is not None:
        facts["default"] = port.default
    ranges = {name: getattr(port, name, None) for name in RANGE}
    if port.id in HOST_LISTS:
        del ranges["options"]
    return facts | {name: value for name, value in ranges.items() if value is not None}


@pytest.fixture(scope="module")
def contract() -> dict[str, Any]:
    path = Path(__file__).with_name("contract.json")
    if os.environ.get("IGL_WRITE_GOLDEN"):
        text = json.dumps({name: described(schema) for name, schema in SCHEMAS.items()}, indent=1)
        path.write_text(text + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def test_comfyui_gets_exactly_the_nodes_of_the_contract(contract):
    async def listed():
        return await (await in_graph_lora.comfy_entrypoint()).get_node_list()

    assert asyncio.run(listed()) == NODES
    assert set(SCHEMAS) == set(contract)


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_inputs_and_outputs_are_those_of_the_contract(node_id, contract):
    assert json.loads(json.dumps(described(SCHEMAS[node_id]))) == contract[node_id]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_default_lies_in_its_range(node_id):
    for port in SCHEMAS[node_id].inputs:
        default, options = getattr(port, "default", None), getattr(port, "options", None)
        low, high = getattr(port, "min", None), getattr(port, "max", None)
        assert default is None or low is None or low <= default <= high, port.id
        assert default is None or options is None or default in options, port.id


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_every_input_and_output_says_what_it_is(node_id):
    schema = SCHEMAS[node_id]
    assert schema.category == CATEGORY
    assert schema.description
    assert all(port.tooltip for port in [*schema.inputs, *schema.outputs])


@pytest.mark.parametrize("page", ["{}.md", "{}/zh.md"])
@pytest.mark.parametrize("node_id", SCHEMAS)
def test_help_pages_have_a_row_for_every_input_and_output(node_id, page, repo_root):
    text = (repo_root / "web" / "docs" / page.format(node_id)).read_text(encoding="utf-8")
    named = {
        name.strip() for row in re.findall(r"^\| ([^|]+) \|", text, re.M) for name in re.split("[,、，]", row)
    }
    schema = SCHEMAS[node_id]
    wanted = {port.id for port in schema.inputs} | {port.display_name for port in schema.outputs}
    assert wanted <= named


@pytest.mark.parametrize("node_id", [s for s in SCHEMAS if s.startswith(("Train", "LoRAAdapter", "Prior"))])
def test_the_pages_of_options_explain_every_option(node_id, repo_root):
    pages = [repo_root / "docs" / name for name in ("options.md", "adapters.md", "recipes.md")]
    words = set(re.findall(r"[a-z][a-z0-9_]+", "".join(page.read_text(encoding="utf-8") for page in pages)))
    assert {port.id for port in SCHEMAS[node_id].inputs if port.get_io_type() in WIDGETS} <= words


def test_no_seed_of_training_is_randomised_by_the_page():
    ids = [i.id for i in SCHEMAS["TrainLoRA"].inputs]
    assert "seed" not in ids
    assert "noise_seed" not in ids
    seed = next(i for i in SCHEMAS["TrainLoRA"].inputs if i.id == "train_seed")
    assert not seed.as_dict().get("control_after_generate")
