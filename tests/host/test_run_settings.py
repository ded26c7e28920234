"""The settings of a run go back into the nodes that made them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from in_graph_lora.nodes import NODES
from in_graph_lora.nodes.run_settings import node_settings
from in_graph_lora.nodes.training_inputs import train_config
from in_graph_lora.trainer.config import (
    RESERVED_NAMES,
    AdapterConfig,
    EmbeddingConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.host import paths

KINDS = {node.define_schema().node_id: node for node in NODES}
SOCKETS = {
    "LoRAAdapter": "adapter", "TrainObjective": "objective", "TrainOptimizer": "optimizer",
    "TrainMemory": "memory", "TrainPreview": "preview", "PriorPreservation": "regularization",
    "TextualInversion": "embedding",
}  # fmt: skip
PICTURE = ImageRecord(path=Path("0.png"), caption="a toy", size=(64, 64), digest="00")
CHANGED = TrainConfig(
    name="toy",
    steps=77,
    epochs=3,
    seed=5,
    adapter=AdapterConfig(kind="dora", rank=8, alpha=4, targets="regex:attn2", start_from="a.safetensors"),
    objective=ObjectiveConfig(loss="huber", t_min=0.1),
    optimizer=OptimizerConfig(name="lion", learning_rate=3e-5, schedule="linear"),
    memory=MemoryConfig(fit="manual", checkpointing=1),
    prior=PriorConfig(method="class_images", class_prompt="a toy"),
    preview=PreviewConfig(prompts=("a toy", "一个玩具"), every=7, width=64, unrelated_prompts=("a",)),
    validation=ValidationConfig(held_out=1, every=9, keep_best=True, max_drift=0.3),
    embedding=EmbeddingConfig(vectors=3, placeholder="ohwx", initial_word="toy", with_lora=True),
    save=SaveConfig(every=11, keep=3),
)


def made_again(config: TrainConfig) -> TrainConfig:
    """What the nodes with these widgets train."""
    nodes = node_settings(json.loads(json.dumps(config.to_dict())))["nodes"]
    options = {SOCKETS[k]: KINDS[k].execute(**v).result[0] for k, v in nodes.items() if k != "TrainLoRA"}
    return train_config(Dataset(records=(PICTURE,), resolution=512), **nodes["TrainLoRA"], **options)


@pytest.mark.parametrize("config", [TrainConfig(), CHANGED], ids=["defaults", "everything"])
def test_the_nodes_make_the_same_config_again(config):
    assert made_again(config) == config


def test_only_option_nodes_that_say_something_are_made():
    assert list(node_settings(TrainConfig().to_dict())["nodes"]) == ["TrainLoRA"]
    adapter = TrainConfig(adapter=AdapterConfig(kind="lokr", rank=64)).to_dict()
    assert list(node_settings(adapter)["nodes"]) == ["TrainLoRA", "LoRAAdapter"]


def test_each_widget_is_an_input_of_its_node():
    for kind, widgets in node_settings(CHANGED.to_dict())["nodes"].items():
        assert widgets.keys() <= {port.id for port in KINDS[kind].define_schema().inputs}


def test_what_no_node_sets_is_said():
    said = node_settings(TrainConfig(optimizer=OptimizerConfig(eps=1e-6)).to_dict())["left"]
    assert "resolution 512" in said[0]
    assert said[1] == "eps 1e-06 of the optimizer, which no node has"
    judged = TrainConfig(preview=CHANGED.preview, validation=ValidationConfig(judge="dinov2 0a"))
    said = node_settings(judged.to_dict())["left"]
    assert said[1] == "the judge of the previews (dinov2 0a), which is connected to Train Preview"


@pytest.mark.parametrize(
    "content", [{}, {"rank": 3}, {"adapter": 4}, {"adapter": {"rank": -1}}, {"steps": None}]
)
def test_a_damaged_config_sets_defaults_or_nothing_and_never_fails(content):
    said = node_settings(content)
    assert said["nodes"] == ({} if content else node_settings(TrainConfig().to_dict())["nodes"])
    assert content == {} or "damaged or of another version" in said["left"][0]


def test_no_run_can_take_the_name_of_a_folder_beside_the_runs():
    made = {name: make for name, make in vars(paths).items() if name.endswith("_directory")}
    del made["runs_directory"]
    folders = [make() for make in made.values()]
    beside = {folder.name for folder in folders if folder.parent == paths.runs().root}
    assert beside == set(RESERVED_NAMES)
