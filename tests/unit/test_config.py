from __future__ import annotations

import json

import pytest

from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
    check_name,
)
from in_graph_lora.trainer.errors import ConfigError, TrainerError


def test_a_config_survives_json():
    config = TrainConfig(
        name="n", steps=7, adapter=AdapterConfig(rank=4, alpha=2), optimizer=OptimizerConfig(betas=(0.8, 0.9))
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "", "  ", ".hidden", "x:y", "nul\0", "a" * 101, "x."]
)
def test_a_name_with_path_parts_is_refused(name):
    with pytest.raises(ConfigError, match="cannot be a file name"):
        check_name(name)


@pytest.mark.parametrize("name", ["my_lora", "我的 LoRA", "v1.5-test"])
def test_ordinary_names_pass(name):
    assert check_name(f" {name} ") == name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdapterConfig(rank=0), "rank is 0"),
        (lambda: TrainConfig(steps=0), "steps is 0"),
        (lambda: TrainConfig(seed=2**64), "train_seed"),
        (lambda: OptimizerConfig(learning_rate=2.0), "learning_rate is 2.0"),
        (lambda: OptimizerConfig(schedule="cosin"), "schedule is 'cosin'; choose one of constant"),
        (lambda: DataConfig(batch_size=0), "batch_size is 0"),
        (lambda: ValidationConfig(keep_best=True), "keep_best is True but held_out is 0"),
        (lambda: ValidationConfig(patience=2), "patience is 2 but held_out is 0"),
    ],
)
def test_a_value_out_of_range_is_named(make, message):
    with pytest.raises(TrainerError, match=message):
        make()


def test_epochs_count_optimizer_steps():
    config = TrainConfig(epochs=5, data=DataConfig(batch_size=4), optimizer=OptimizerConfig(accumulation=2))
    assert config.total_steps(25) == 5 * 4  # ceil(25 / 8) = 4
    assert TrainConfig(steps=9).total_steps(25) == 9
