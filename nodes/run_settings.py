"""The settings of a run as widgets of the nodes that make them: `training_inputs.train_config` backwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..trainer.config import TrainConfig
from ..trainer.errors import ConfigError
from ..trainer.rules import REGEX
from .lora_adapter import CUSTOM, NEW_LORA

Widgets = dict[str, Any]


def node_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """{nodes: {node id: {input: value}}, left: [sentence]} of the content of a config.json.

    Option nodes are left out where all their settings have the defaults. left: what no widget can be set to.
    """
    try:
        c = TrainConfig.from_dict(config)
    except (ConfigError, TypeError, AttributeError) as error:
        return {"nodes": {}, "left": [f"the run's config.json is damaged or of another version ({error})"]}
    nodes = {"TrainLoRA": _train_lora(c), **_options(c)}
    left = [f"pictures, captions and resolution {c.data.resolution}, which Load Dataset has"]
    default = TrainConfig().optimizer
    for name in ("betas", "eps"):
        if (value := getattr(c.optimizer, name)) != getattr(default, name):
            left.append(f"{name} {value} of the optimizer, which no node has")
    if judge := c.validation.judge:
        left.append(f"the judge of the previews ({judge}), which is connected to Train Preview")
    if own := c.objective.own_loss:
        left.append(f"the loss function {own} of a Python program, which no node has")
    return {"nodes": nodes, "left": left}


def _train_lora(c: TrainConfig) -> Widgets:
    return {
        "steps": c.steps,
        "learning_rate": c.optimizer.learning_rate,
        "rank": c.adapter.rank,
        "alpha": c.adapter.alpha,
        "batch_size": c.data.batch_size,
        "train_seed": c.seed,
        "name": c.name,
        "caption_syntax": c.data.caption_syntax,
        "edit_node": c.data.edit_node,
    }


def _options(c: TrainConfig) -> dict[str, Widgets]:
    default = _all_options(TrainConfig())
    return {node: widgets for node, widgets in _all_options(c).items() if widgets != default[node]}


def _all_options(c: TrainConfig) -> dict[str, Widgets]:
    regex = c.adapter.targets.startswith(REGEX)
    adapter = {
        **_without(asdict(c.adapter), "rank", "alpha"),
        "targets": CUSTOM if regex else c.adapter.targets,
        "target_regex": c.adapter.targets.removeprefix(REGEX) if regex else "",
        "start_from": c.adapter.start_from or NEW_LORA,
    }
    optimizer = {
        **_without(asdict(c.optimizer), "name", "learning_rate", "betas", "eps"),
        "optimizer": c.optimizer.name,
        "epochs": c.epochs,
    }
    preview = {
        **_without(asdict(c.preview), "prompts", "unrelated_prompts", "steps"),
        "prompts": "\n".join(c.preview.prompts),
        "unrelated_prompts": "\n".join(c.preview.unrelated_prompts),
        "sampling_steps": c.preview.steps,
        **_without(asdict(c.validation), "every", "judge"),
        "measure_every": c.validation.every,
        "checkpoint_every": c.save.every,
        "keep_states": c.save.keep,
        "keep_checkpoints": c.save.keep_checkpoints,
        "keep_every": c.save.keep_every,
    }
    return {
        "LoRAAdapter": adapter,
        "TrainObjective": _without(asdict(c.objective), "own_loss"),
        "TrainOptimizer": optimizer,
        "TrainMemory": asdict(c.memory),
        "PriorPreservation": asdict(c.prior),
        "TextualInversion": asdict(c.embedding),
        "TrainPreview": preview,
    }


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
