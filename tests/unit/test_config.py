from __future__ import annotations

import ast
import inspect
import json
import math
from dataclasses import fields, is_dataclass

import pytest

import in_graph_lora.trainer.config as config_module
from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    MemoryConfig,
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


@pytest.mark.parametrize("name", ["cache", "Evidence", "class-images"])
def test_a_name_of_a_folder_beside_the_runs_is_refused(name):
    with pytest.raises(ConfigError, match=f"name '{name}' is that of a folder beside the runs; choose"):
        check_name(name)


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
        (
            lambda: MemoryConfig(fit="manual", offload_activations=True),
            "offload_activations is True but checkpointing and streamed are 0; set checkpointing to 1",
        ),
    ],
)
def test_a_value_out_of_range_is_named(make, message):
    with pytest.raises(TrainerError, match=message):
        make()


def test_epochs_count_optimizer_steps():
    config = TrainConfig(epochs=5, data=DataConfig(batch_size=4), optimizer=OptimizerConfig(accumulation=2))
    assert config.total_steps(25) == 18  # 5 epochs of ceil(25 / 4) = 7 batches, two in a step
    assert TrainConfig(steps=9).total_steps(25) == 9


FREE_TEXT = ("name", "sampler_name", "scheduler")
"""Decided by the user or by ComfyUI; OptimizerConfig.name has a test above."""
SECTIONS = [value for value in vars(config_module).values() if inspect.isclass(value) and is_dataclass(value)]
NUMBERS = [
    (section, field.name, type(getattr(section(), field.name)))
    for section in SECTIONS
    for field in fields(section)
    if type(getattr(section(), field.name)) in (int, float)
]


@pytest.mark.parametrize(("section", "name", "kind"), NUMBERS)
def test_every_number_has_a_range_and_a_refusal_names_the_field(section, name, kind):
    wrong = [-10_000] if kind is int else [math.nan, math.inf, -math.inf]
    for value in wrong:
        with pytest.raises(
            ConfigError,
            match=f"{'train_seed' if section is TrainConfig and name == 'seed' else name}.* is {value}",
        ):
            section(**{name: value})


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (section, field.name)
        for section in SECTIONS
        for field in fields(section)
        if field.type == "str" and getattr(section(), field.name) and field.name not in FREE_TEXT
    ],
)
def test_every_choice_is_checked_and_a_refusal_lists_the_choices(section, name):
    with pytest.raises(ConfigError, match=r"'no such'; choose .*(,| or )"):
        section(**{name: "no such"})


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9), (0.9,), (0.9, math.nan)])
def test_betas_are_two_numbers_below_one(betas):
    with pytest.raises(ConfigError, match="betas are"):
        OptimizerConfig(betas=betas)


def test_every_field_says_what_it_is():
    tree = ast.parse(inspect.getsource(config_module))
    for section in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, after in zip(section.body, section.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Config"):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert said, f"{section.name}.{ast.unparse(field.target)}"
