"""Training Recipe inside ComfyUI: what leaves the node is what Train LoRA trains by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import pytest

from in_graph_lora.nodes.sockets import MadeFor, OptimizerOptions
from in_graph_lora.nodes.training_inputs import tell_of_recipe, train_config
from in_graph_lora.nodes.training_recipe import FROM_CONFIG, TrainingRecipe
from in_graph_lora.trainer.config import TrainConfig
from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.recipes.recipe import load, names

from .loaded import Loaded, train, write_pictures

CONFIGS = Path(__file__).parents[1] / "configs"
PICTURE = ImageRecord(path=Path("0.png"), caption="a toy", size=(64, 64), digest="00")
SMALL = """
network_module = "networks.lora"
network_dim = 4
network_alpha = 1
network_train_unet_only = true
learning_rate = 1e-3
max_train_steps = 2
"""


def outputs(recipe: str, config: str = "", class_prompt: str = "", prompts: str = "") -> dict[str, Any]:
    ports = TrainingRecipe.define_schema().outputs
    done = TrainingRecipe.execute(recipe=recipe, config=config, class_prompt=class_prompt, prompts=prompts)
    return dict(zip((port.display_name for port in ports), done.result, strict=True))


def config_of(values: dict[str, Any], name: str = "my_lora") -> TrainConfig:
    """What Train LoRA makes of the outputs that are linked to its inputs of the same name."""
    own = {k: v for k, v in values.items() if k not in ("resolution", "framing", "report")}
    dataset = Dataset(records=(PICTURE,), resolution=values["resolution"])
    return train_config(dataset, name=name, **own)


@pytest.mark.parametrize("name", names())
def test_train_lora_is_given_every_value_of_a_recipe(name):
    values = outputs(name)
    assert config_of(values) == load(name).settings.config
    assert values["framing"] == load(name).settings.framing
    assert values["report"] == load(name).report("en")


def test_epochs_become_steps_with_the_pictures():
    config = config_of(outputs("sd14_five_epochs"))
    assert config.total_steps(20) == 5 * 3, "ceil(20 / 8) batches in each of five epochs"


def test_what_only_the_user_knows_goes_before_the_config():
    config = (CONFIGS / "ai_toolkit.yaml").read_text(encoding="utf-8")
    own = config_of(outputs(FROM_CONFIG, config))
    assert (own.prior.class_prompt, own.preview.prompts) == ("person", ("a horse", "a bear"))
    own = config_of(outputs(FROM_CONFIG, config, class_prompt=" a dog ", prompts="a cat\n\na cow"))
    assert (own.prior.class_prompt, own.preview.prompts) == ("a dog", ("a cat", "a cow"))


def test_a_config_is_read_from_the_input_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "mine.toml").write_text(SMALL, encoding="utf-8")
    before = TrainingRecipe.fingerprint_inputs(FROM_CONFIG, "mine.toml")
    assert outputs(FROM_CONFIG, "mine.toml")["rank"] == 4
    (tmp_path / "mine.toml").write_text(SMALL + "seed = 5\n", encoding="utf-8")
    assert TrainingRecipe.fingerprint_inputs(FROM_CONFIG, "mine.toml") != before
    assert outputs(FROM_CONFIG, "mine.toml")["train_seed"] == 5
    assert TrainingRecipe.fingerprint_inputs(FROM_CONFIG, "gone.toml") == ""
    assert TrainingRecipe.fingerprint_inputs(FROM_CONFIG, SMALL) == ""
    assert TrainingRecipe.fingerprint_inputs("sd15", "")
    with pytest.raises(ConfigError, match="there is no file 'gone.toml'"):
        outputs(FROM_CONFIG, "gone.toml")


@pytest.mark.parametrize(
    ("recipe", "config", "said"),
    [
        ("sd15", "", True),
        (FROM_CONFIG, SMALL, True),
        (FROM_CONFIG, None, True),
        (FROM_CONFIG, " ", "config is empty; paste a config into it, or choose a recipe"),
        ("sd15", "x", "config is filled in, and recipe is 'sd15'; choose [from config], or empty config"),
        ("sd99", "", "there is no recipe 'sd99'; choose one of the list"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(recipe, config, said):
    assert TrainingRecipe.validate_inputs(recipe, config) == said


def test_an_empty_config_that_comes_by_a_wire_is_refused():
    with pytest.raises(ConfigError, match="config is empty"):
        outputs(FROM_CONFIG, " \n")


def test_a_recipe_for_another_model_is_named(loaded: Loaded):
    said: list[Any] = []
    fits, other = outputs("sd15")["optimizer"], outputs("flux1")["optimizer"]
    any_model = OptimizerOptions(made_for=MadeFor("mine", ()))
    for optimizer in (None, OptimizerOptions(), any_model, fits):
        tell_of_recipe(loaded.model, optimizer, said.append)
    assert said == []
    tell_of_recipe(loaded.model, other, said.append)
    assert said[0].message.startswith(
        "the recipe flux1 is for Flux.1, and the model is Stable Diffusion 1: its rate, steps and noise"
    )


def test_kohyas_config_trains_kohyas_layers_at_kohyas_scale(loaded: Loaded, tmp_path):
    """Linear layers and 1×1 convolutions of the transformers, and nothing of the residual blocks."""
    config = config_of(outputs(FROM_CONFIG, SMALL))
    folder = write_pictures(tmp_path / "pictures", [(64, 64)] * 2)
    result = train(
        loaded,
        folder,
        tmp_path / "out",
        steps=config.steps,
        adapter=config.adapter,
        optimizer=config.optimizer,
    )
    layers = {
        key.removesuffix(".alpha"): float(v) for key, v in result.lora.items() if key.endswith(".alpha")
    }
    assert set(layers.values()) == {1.0}
    assert all(v.shape[0] == 4 for k, v in result.lora.items() if "lora_down" in k)
    leaves = {name.split("attentions_")[-1].split("_", 1)[1] for name in layers}
    assert {"proj_in", "proj_out"} < leaves
    assert {"transformer_blocks_0_ff_net_0_proj", "transformer_blocks_0_attn2_to_out_0"} < leaves
    assert all("attentions" in name for name in layers)
    assert len(result.losses) == 2
