"""ai-toolkit, by the names of its YAML below `config.process`; lists of tables are read as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ..source_text import without_numbers
from ..tool import (
    ALWAYS,
    DATA,
    FILES,
    MEMORY,
    MODEL,
    NONE,
    PATH,
    SAMPLES,
    Reading,
    Tool,
    choice,
    is_off,
    number,
    scaled,
    to,
    together,
    truth,
    when_on,
)
from .common import PRECISIONS, min_snr, optimizer, schedule, side

_BEFORE = "config.process."
_LEVELS = {"sigmoid": "sigmoid", "linear": "uniform", "shift": "shift", "lumina2_shift": "shift"}


def inner_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without numbers and without `config.process`; of a name that comes again, the first value counts."""
    found: dict[str, Any] = {}
    prompts: list[Any] = []
    for name, value in values.items():
        plain = without_numbers(name).removeprefix(_BEFORE)
        if plain == "sample.samples.prompt":
            prompts.append(value)
        if plain in found and found[plain] != value:
            found[f"{plain} (further ones)"] = value
        else:
            found.setdefault(plain, value)
    if prompts:
        found["sample.samples.prompt"] = prompts
    return found


def lora_only(reading: Reading) -> None:
    given = reading.given
    if not any(name.startswith("network.") for name in reading.names):
        raise ConfigError(
            "config: this ai-toolkit process has no network, so it trains no LoRA; choose another"
        )
    reading.now = "network.type"
    kind = str(given["network.type"]).lower()
    if kind in ("lora", "locon", "lokr", "dora"):
        convolutions = kind == "lora" and not is_off(given.get("network.conv"))
        reading.set("adapter.kind", "locon" if convolutions else kind)
    else:
        reading.leave(NONE)
    reading.set("adapter.init", "kaiming")
    reading.set("adapter.targets", "all linear")
    reading.note("layers outside of the numbered blocks may have an adapter there, and have none here")
    named = [n for n in ("network.rank", "network.linear") if not is_off(given.get(n))]
    reading.now = (named or ["network.linear"])[0]
    reading.set("adapter.rank", given.get(reading.now) or 4)
    alpha = [n for n in ("network.linear_alpha", "network.alpha") if n in given]
    reading.now = (alpha or ["network.linear_alpha"])[0]
    reading.set("adapter.alpha", given.get(reading.now) or 1.0)


def rates(reading: Reading) -> None:
    given = reading.given
    reading.now = "train.unet_lr" if "train.unet_lr" in given else "train.lr"
    reading.set("optimizer.learning_rate", given[reading.now])
    if truth(given.get("train.train_text_encoder", False)):
        reading.now = (
            "train.text_encoder_lr" if "train.text_encoder_lr" in given else "train.train_text_encoder"
        )
        reading.set("optimizer.text_encoder_lr", given.get("train.text_encoder_lr", given["train.lr"]))


def levels(reading: Reading) -> None:
    given, flow = reading.given, str(reading.given.get("train.noise_scheduler", "")).lower() == "flowmatch"
    reading.now = "train.noise_scheduler"
    reading.taken.setdefault("train.noise_scheduler", [])
    reading.now = "train.timestep_type"
    word = str(given.get("train.timestep_type", "sigmoid")).lower()
    if not flow:
        reading.set("objective.timestep_sampling", "uniform")
        if "train.timestep_type" in given:
            reading.note("timestep_type counts there for flow models only")
    elif truth(given.get("train.linear_timesteps", False)):
        reading.now = "train.linear_timesteps"
        reading.leave(NONE)
    elif word in _LEVELS:
        reading.set("objective.timestep_sampling", _LEVELS[word])
    else:
        reading.leave(NONE)


def ema(reading: Reading, value: Any) -> None:
    if truth(value):
        reading.now = "train.ema_config.ema_decay"
        reading.set("optimizer.ema_decay", reading.given.get(reading.now, 0.999))


def preservation(reading: Reading, value: Any) -> None:
    if truth(value):
        reading.set("prior.method", "output_preservation")
        reading.set("prior.weight", reading.given.get("train.diff_output_preservation_multiplier", 1.0))
        reading.set("prior.class_prompt", str(reading.given.get("train.diff_output_preservation_class", "")))


def resolutions(reading: Reading, value: Any) -> None:
    if isinstance(value, list) and len(value) > 1:
        sides = [round(number(reading.now, v)) for v in value]
        reading.set("framing.resolutions", sides)
        reading.set("data.resolution", max(sides))
    else:
        side(reading, value)


def parameters(reading: Reading, value: Any) -> None:
    reading.set("optimizer.weight_decay", value)


def prompts(reading: Reading, value: Any) -> None:
    lines = [str(v) for v in value] if isinstance(value, list) else [str(value)]
    reading.set("preview.prompts", lines)


FIELDS = {
    **dict.fromkeys(
        (
            "job",
            "type",
            "network.type",
            "network.rank",
            "network.linear",
            "network.alpha",
            "network.linear_alpha",
            "train.lr",
            "train.unet_lr",
            "train.text_encoder_lr",
            "train.train_text_encoder",
            "train.timestep_type",
            "train.noise_scheduler",
            "train.linear_timesteps",
            "train.ema_config.ema_decay",
            "train.train_unet",
            "train.diff_output_preservation_multiplier",
            "train.diff_output_preservation_class",
            "network.conv",
            "network.transformer_only",
        ),
        together,
    ),
    "network.dropout": to("adapter.dropout"),
    "train.steps": to("steps"),
    "train.batch_size": to("data.batch_size"),
    "train.gradient_accumulation": to("optimizer.accumulation"),
    "train.gradient_accumulation_steps": to("optimizer.accumulation"),
    "train.optimizer": optimizer,
    "train.optimizer_params.weight_decay": parameters,
    "train.lr_scheduler": schedule,
    "train.lr_scheduler_params.num_warmup_steps": to("optimizer.warmup_steps"),
    "train.lr_scheduler_params.warmup_steps": to("optimizer.warmup_steps"),
    "train.max_grad_norm": to("optimizer.max_grad_norm"),
    "train.ema_config.use_ema": ema,
    "train.dtype": choice("memory.precision", {**PRECISIONS, "fp32": "fp32", "float": "fp32"}),
    "train.min_snr_gamma": min_snr,
    "train.snr_gamma": when_on(min_snr),
    "train.noise_offset": to("objective.noise_offset"),
    "train.min_denoising_steps": scaled("objective.t_min", 1e-3),
    "train.max_denoising_steps": lambda r, v: r.set("objective.t_max", (number(r.now, v) + 1) / 1000),
    "train.loss_type": choice("objective.loss", {"mse": "mse", "mae": "l1"}),
    "train.diff_output_preservation": preservation,
    "train.prompt_dropout_prob": to("objective.caption_dropout"),
    "datasets.caption_dropout_rate": to("objective.caption_dropout"),
    "datasets.shuffle_tokens": to("objective.tag_shuffle"),
    "datasets.keep_tokens": to("objective.keep_tags"),
    "datasets.token_dropout_rate": to("objective.tag_dropout"),
    "datasets.resolution": resolutions,
    "datasets.flip_x": to("framing.flip"),
    "datasets.random_crop": when_on(lambda r, _: r.set("framing.crop", "random")),
    "datasets.alpha_mask": to("framing.alpha_mask"),
    "datasets.mask_min_value": to("objective.unmasked_weight"),
    "save.save_every": to("save.every"),
    "sample.sample_every": to("preview.every"),
    "sample.prompts": prompts,
    "sample.samples.prompt": prompts,
    "sample.neg": to("preview.negative"),
    "sample.seed": to("preview.seed"),
    "sample.sample_steps": to("preview.steps"),
    "sample.guidance_scale": to("preview.cfg"),
    "sample.width": to("preview.width"),
    "sample.height": to("preview.height"),
    "sample.num_frames": to("preview.frames"),
    "train.seed": to("seed"),
    "training_seed": to("seed"),
}

_FAMILIES = {
    r"arch=flux2|arch=flux_2": "flux2",
    r"arch=flux|is_flux=True": "flux1",
    r"arch=(sdxl|xl)|is_xl=True": "sdxl_base_v1-0",
    r"arch=qwen_image": "qwen_image",
    r"arch=zimage": "z_image",
    r"arch=wan2?1": "wan2.1",
    r"arch=sd3|is_v3=True": "sd3",
    r"arch=chroma": "chroma",
    r"arch=hidream": "hidream",
    r"arch=lumina2|is_lumina2=True": "lumina2",
    r"is_v2=True": "sd_v2",
    r"arch=sd1?5?(\s|$)": "sd_v1",
}

AI_TOOLKIT = Tool(
    title="ai-toolkit",
    source="ostris/ai-toolkit, its config modules as of August 2026",
    signs=frozenset({"network.linear", "network.type", "train.noise_scheduler", "datasets.folder_path"}),
    fields=FIELDS,
    left={
        NONE: "train.* network.* slider* decorator* embedding* adapter* trigger_word",
        DATA: "datasets.*",
        SAMPLES: "sample.* train.disable_sampling train.skip_first_sample train.force_first_sample",
        FILES: "save.* logging.* meta.* training_folder sqlite_db_path config.name performance_log_every"
        " log_dir",
        MEMORY: "device train.gradient_checkpointing train.xformers train.sdp train.attention_backend"
        " train.cache_text_embeddings train.unload_text_encoder network.layer_offloading model.quantize*"
        " model.low_vram model.qtype* model.layer_offloading* model.compile* model.block_compile"
        " model.cache_size_limit"
        " model.auto_memory model.split_model_* model.*dtype* model.vae_d* model.te_d*"
        " train.single_item_batching",
        PATH: "model.name_or_path model.*_path model.*_name_or_path network.pretrained_lora_path",
        MODEL: "model.*",
        ALWAYS: "datasets.cache_*",
    },
    defaults={
        "network.type": "lora",
        "train.lr": 1e-6,
        "train.steps": 1000,
        "train.batch_size": 1,
        "train.optimizer": "adamw",
        "train.lr_scheduler": "constant",
        "train.max_grad_norm": 1.0,
        "train.lr_scheduler_params.num_warmup_steps": 0,
        "datasets.keep_tokens": 0,
    },
    always=(lora_only, rates, levels),
    rename=inner_names,
    families=_FAMILIES,
    family_from=(
        "model.arch",
        "model.is_flux",
        "model.is_xl",
        "model.is_v2",
        "model.is_v3",
        "model.is_lumina2",
    ),
)
