"""What a LoRA file says of its training: kohya's `ss_*`, and our own config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ...adapters.metadata import CONFIG
from ...errors import ConfigError
from ..settings import DEFAULTS
from ..source_text import flat
from ..tool import DATA, FILES, MODEL, NONE, OTHER_NODES, Reading, Tool, to
from .common import OPTIMIZERS, optimizer_args
from .kohya import FAMILIES, FIELDS, KOHYA, LEFT, NEUTRAL

_LITERALS = {"None": None, "True": True, "False": False}
_MODELS = {
    r"sdxl": "sdxl_base_v1-0",
    r"sd_v1|sd_1": "sd_v1",
    r"sd_v2|sd_2": "sd_v2",
    r"flux2": "flux2",
    r"flux": "flux1",
    r"sd3": "sd3",
    r"qwen": "qwen_image",
    r"z_?image": "z_image",
    r"wan": "wan2.1",
    r"chroma": "chroma",
}


def plain_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """`ss_network_dim` as `network_dim`, and its text as a value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not name.startswith("ss_"):
            found[name] = value
            continue
        plain = name.removeprefix("ss_")
        value = _LITERALS.get(value, value) if isinstance(value, str) else value
        if plain == "network_args" and isinstance(value, str):
            value = [f"{k}={v}" for k, v in _table(value).items()]
        elif plain == "resolution" and isinstance(value, str):
            value = value.strip("()[] ")
        found[plain] = value
    if "batch_size_per_device" in found:
        found["train_batch_size"] = found.pop("batch_size_per_device")
    if "train_batch_size" not in found and "total_batch_size" in found:
        found["train_batch_size"] = found.pop("total_batch_size")
    return found


def _table(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {text[:200]: ""}
    return found if isinstance(found, dict) else {}


def optimizer(reading: Reading, value: Any) -> None:
    """`torch.optim.adamw.AdamW(weight_decay=0.1,betas=(0.9, 0.99))`"""
    kind, _, args = str(value).partition("(")
    word = kind.rpartition(".")[2].lower()
    if word in OPTIMIZERS:
        reading.set("optimizer.name", OPTIMIZERS[word])
    else:
        reading.leave(NONE)
    if args:
        items = re.findall(r"\w+=(?:\([^)]*\)|\[[^\]]*\]|[^,()]+)", args)
        optimizer_args(reading, [item.replace(" ", "") for item in items])


METADATA = Tool(
    title="metadata of a LoRA",
    source="kohya-ss/sd-scripts, train_network.py",
    signs=frozenset({"ss_network_dim", "ss_network_module", "ss_learning_rate", "ss_base_model_version"}),
    fields={**FIELDS, "optimizer": optimizer, "debiased_estimation": FIELDS["debiased_estimation_loss"]},
    left={
        **LEFT,
        DATA: LEFT[DATA]
        + " datasets dataset_dirs reg_dataset_dirs tag_frequency bucket_info num_train_images num_reg_images"
        " num_train_items num_batches_per_epoch num_validation_images total_batch_size",
        FILES: LEFT[FILES]
        + " modelspec.* sshs_* session_id training_started_at training_finished_at steps epoch num_epochs"
        " sd_scripts_commit_hash"
        " in_graph_lora.* format",
        MODEL: LEFT[MODEL] + " base_model_version sd_model_* new_sd_model_hash vae_name vae_hash new_vae_hash"
        " base_precision has_control",
        NONE: LEFT[NONE] + " self_flow* dino_* frozen_visual_params noise_scale_* noise_clip_std",
    },
    defaults={"network_dim": 4, "network_alpha": 1, "max_train_steps": 1600, "learning_rate": 1e-4},
    always=KOHYA.always,
    neutral=NEUTRAL,
    rename=plain_names,
    families={**_MODELS, **FAMILIES},
    family_from=("base_model_version", "network_module"),
)


def own_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a file's metadata the config in it; the rest as it is."""
    if CONFIG not in values:
        return dict(values)
    try:
        own = flat(json.loads(values[CONFIG]))
    except (ValueError, TypeError, RecursionError, ConfigError) as error:
        raise ConfigError(f"config: the settings in the LoRA's metadata are damaged ({error})") from error
    return {**{n: v for n, v in values.items() if n != CONFIG}, **own}


OWN = Tool(
    title="In-Graph LoRA",
    source="config.json of a run, and the metadata of our files",
    signs=frozenset({CONFIG, "adapter.rank", "optimizer.learning_rate"}),
    fields={name: to(name) for name in DEFAULTS if not name.startswith("framing.")},
    left={
        FILES: "name modelspec.* in_graph_lora.* format",
        MODEL: "ss_* adapter.start_from adapter.start_alpha data.digest",
        OTHER_NODES: "embedding.* data.caption_syntax data.edit_node validation.judge",
        NONE: "objective.own_loss",
    },
    defaults={name: value for name, value in DEFAULTS.items() if not name.startswith("framing.")},
    rename=own_names,
    families={rf"={re.escape(name)}$": name for name in dict.fromkeys(_MODELS.values())},
    family_from=("ss_base_model_version",),
)
