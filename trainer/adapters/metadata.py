"""What a LoRA file says about itself: kohya's `ss_*`, Stability's `modelspec.*`, and our own settings."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from torch import Tensor

from .kinds import KINDS, Kind

CONFIG = "in_graph_lora.config"
DORA_NORM = "in_graph_lora.dora_norm"
"""What a file's `dora_scale` is over: "base" ‖W‖, as ComfyUI reads it; "merged" ‖W + ΔW‖, as LyCORIS does."""

_ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1",
    "sd_v2": "stable-diffusion-v2-512",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3-medium",
    "flux1": "flux-1-dev",
}


def training_metadata(
    config: Mapping[str, Any],
    *,
    base_model: str,
    steps: int,
    alpha: float,
    rank: int,
    kinds: Sequence[str] = (),
    dataset_digest: str = "",
    base_hash: str = "",
    trigger: str = "",
    tags: Sequence[str] = (),
    prediction: str = "",
    base_precision: str = "",
    date: datetime | None = None,
) -> dict[str, str]:
    """The entries that other tools show, and our whole config.

    config: `TrainConfig.to_dict()`. kinds: of the file's adapters, the network's first, where a starting file
    and not the config decides them. tags: the captions, one a picture; their parts are counted.
    prediction: epsilon, v or flow. base_precision: what the frozen weights were held in, other than
    they were loaded.
    """
    adapter = dict(config.get("adapter", {}))
    kinds = kinds or [adapter.get("kind", "lora")]
    kind = KINDS[kinds[0]]
    date = date or datetime.now(timezone.utc)
    resolution = dict(config.get("data", {})).get("resolution", "")
    entries = {
        "ss_network_module": kind.module,
        "ss_network_dim": str(rank) if kind.has_rank else "",
        "ss_network_alpha": str(alpha) if kind.has_rank else "",
        "ss_network_args": json.dumps(_network_args(kind, adapter)),
        "ss_base_model_version": base_model,
        "ss_output_name": str(config.get("name", "")),
        "ss_steps": str(steps),
        "ss_max_train_steps": str(config.get("steps", "")),
        "ss_seed": str(config.get("seed", "")),
        "ss_learning_rate": str(dict(config.get("optimizer", {})).get("learning_rate", "")),
        "ss_optimizer": str(dict(config.get("optimizer", {})).get("name", "")),
        "ss_lr_scheduler": str(dict(config.get("optimizer", {})).get("schedule", "")),
        "ss_total_batch_size": str(dict(config.get("data", {})).get("batch_size", "")),
        "ss_resolution": f"({resolution}, {resolution})" if resolution else "",
        "ss_network_dropout": str(adapter.get("dropout") or ""),
        "ss_base_precision": base_precision,
        "ss_fp8_base": "True" if base_precision == "fp8" else "",
        "ss_sd_model_hash": base_hash[:8],
        "ss_new_sd_model_hash": base_hash,
        "ss_training_finished_at": str(date.timestamp()),
        "ss_tag_frequency": json.dumps({"dataset": tag_frequency(tags)}) if tags else "",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{_ARCHITECTURES.get(base_model, base_model)}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": str(config.get("name", "")),
        "modelspec.date": date.replace(microsecond=0, tzinfo=None).isoformat(),
        "modelspec.prediction_type": prediction,
        "modelspec.resolution": f"{resolution}x{resolution}" if resolution else "",
        "modelspec.trigger_phrase": trigger,
        CONFIG: json.dumps(config),
        "in_graph_lora.dataset": dataset_digest,
    }
    if "dora" in kinds:
        entries[DORA_NORM] = "merged" if adapter.get("file_names") == "lycoris" else "base"
    return {key: value for key, value in entries.items() if value}


_OF_LORA = ("ss_network_", "ss_learning_rate", DORA_NORM)


def of_embedding(metadata: Mapping[str, str], placeholder: str) -> dict[str, str]:
    """A run's entries without those of a LoRA, for its embedding."""
    about = {key: value for key, value in metadata.items() if not key.startswith(_OF_LORA)}
    architecture, _, _ = about.get("modelspec.architecture", "").partition("/")
    return {
        **about,
        "modelspec.architecture": f"{architecture}/textual-inversion",
        "modelspec.trigger_phrase": placeholder,
        "in_graph_lora.placeholder": placeholder,
    }


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How often each comma-separated part occurs in the captions."""
    return dict(Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()))


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """`modelspec.hash_sha256`: over the bytes of the tensors in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].detach().cpu().contiguous().numpy().tobytes())
    return f"0x{digest.hexdigest()}"


def _network_args(kind: Kind, adapter: Mapping[str, Any]) -> dict[str, str]:
    args = dict(kind.args)
    if kind.name == "locon":
        args |= {"conv_dim": str(adapter.get("rank", "")), "conv_alpha": str(adapter.get("alpha", ""))}
    if adapter.get("rank_by_block"):
        args["rank_by_block"] = str(adapter["rank_by_block"])
    return args
