"""OneTrainer, by the names of its TrainConfig; inner tables are joined by dots."""

from __future__ import annotations

import math
from typing import Any

from ...errors import ConfigError
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
    to,
    together,
    truth,
    when_on,
)
from .common import OPTIMIZERS, PRECISIONS, SCHEDULES, side

VERSION = 11
"""`__version` of the configs that this table was written for."""
_DENSITIES = {"uniform": "uniform", "logit_normal": "logit_normal", "heavy_tail": "mode", "cos_map": "cosmap"}
_KINDS = {"lora": "lora", "loha": "loha", "lokr": "lokr", "oft_2": "oft"}
_PRECISIONS = {**PRECISIONS, "float_16": "fp16", "bfloat_16": "bf16", "float_32": "fp32"}


def lora_only(reading: Reading) -> None:
    method = str(reading.given.get("training_method", "FINE_TUNE"))
    if method.upper() != "LORA":
        raise ConfigError(f"config: training_method is {method[:40]}; only LORA can be trained here")
    reading.now = "training_method"
    reading.taken["training_method"] = []
    version = reading.given.get("__version", VERSION)
    if number("__version", version) > VERSION:
        reading.note(
            f"the config has version {version}, and the table here is for {VERSION}: look at unknown names"
        )


def adapter(reading: Reading) -> None:
    given = reading.given
    kind = _KINDS.get(str(given["peft_type"]).lower())
    reading.now = "peft_type"
    if kind is None:
        reading.leave(NONE)
        kind = "lora"
    reading.now = "lora_decompose"
    if kind == "lora" and truth(given.get("lora_decompose")):
        kind = "dora"
        reading.note(
            "DoRA's magnitude is taken over outputs here; lora_decompose_output_axis there decides it"
        )
    reading.now = "peft_type"
    reading.set("adapter.kind", kind)
    reading.set("adapter.init", "kaiming")
    reading.now = "oft_block_size" if kind == "oft" else "lokr_dim" if kind == "lokr" else "lora_rank"
    reading.set("adapter.rank", given[reading.now])
    if kind != "oft":
        reading.now = "lora_alpha"
        reading.set("adapter.alpha", given["lora_alpha"])


def layers(reading: Reading) -> None:
    """layer_filter is a list of parts of names, with commas, or an expression."""
    given, reading.now = reading.given, "layer_filter"
    text = str(given.get("layer_filter") or "").strip()
    if not text:
        reading.set("adapter.targets", "all linear + conv")
        reading.note("layers outside of the numbered blocks have an adapter there, and none here")
    elif text in ("attn", "attentions", "attention"):
        reading.set("adapter.targets", "attention")
    else:
        reading.leave(NONE)
        reading.set("adapter.targets", "attention+feed-forward" if "attn" in text else "all linear")


def rate(reading: Reading) -> None:
    """The part's own rate goes before the general one; learning_rate_scaler multiplies by √ of the"
    " pictures."""
    given = reading.given
    part = "transformer" if not is_off(given.get("transformer.learning_rate")) else "unet"
    name = f"{part}.learning_rate"
    reading.now = "learning_rate" if is_off(given.get(name)) else name
    value = number(reading.now, given[reading.now])
    scaler = str(given.get("learning_rate_scaler", "NONE")).upper()
    batch, accumulation = given.get("batch_size", 1), given.get("gradient_accumulation_steps", 1)
    factor = (number("batch_size", batch) if "BATCH" in scaler or "BOTH" in scaler else 1) * (
        number("gradient_accumulation_steps", accumulation) if "ACCUM" in scaler or "BOTH" in scaler else 1
    )
    if factor > 1:
        reading.note(f"learning_rate_scaler {scaler}: the rate is {value:g} × √{factor:g}, as there")
    reading.set("optimizer.learning_rate", value * math.sqrt(factor))
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"):
        if truth(given.get(f"{name}.train", False)) and truth(given.get(f"{name}.include", True)):
            own = given.get(f"{name}.learning_rate")
            reading.now = f"{name}.train" if is_off(own) else f"{name}.learning_rate"
            if "optimizer.text_encoder_lr" in reading.settings:
                reading.note("all text encoders have the rate of the first one here")
            else:
                reading.set("optimizer.text_encoder_lr", given["learning_rate"] if is_off(own) else own)


def levels(reading: Reading) -> None:
    given, reading.now = reading.given, "timestep_distribution"
    word = str(given["timestep_distribution"]).lower()
    bias, weight = (number(n, given.get(n) or 0) for n in ("noising_bias", "noising_weight"))
    if word in _DENSITIES:
        reading.set("objective.timestep_sampling", _DENSITIES[word])
    else:
        reading.leave(NONE)
    if word == "logit_normal":
        reading.now = "noising_bias"
        reading.set("objective.logit_mean", bias)
        reading.now = "noising_weight"
        reading.set("objective.logit_std", weight + 1.0)
    elif word == "heavy_tail":
        reading.now = "noising_weight"
        reading.set("objective.mode_scale", weight)
    reading.now = "dynamic_timestep_shifting"
    if truth(given.get("dynamic_timestep_shifting", False)):
        reading.leave(NONE)
        reading.note(
            "the shift follows the resolution there; resolution_shift of Train Objective is the nearest"
        )
    elif not is_off(given.get("timestep_shift")) and number("timestep_shift", given["timestep_shift"]) != 1:
        reading.now = "timestep_shift"
        reading.set("objective.shift", given["timestep_shift"])
        if (
            given.get("min_noising_strength")
            or number("max_noising_strength", given.get("max_noising_strength") or 1) < 1
        ):
            reading.note("the range of noise levels is taken before the shift there, and after it here")


def loss(reading: Reading) -> None:
    given = reading.given
    strengths = {n: number(n, given.get(n) or 0) for n in ("mse_strength", "mae_strength", "huber_strength")}
    used = [n for n, s in strengths.items() if s]
    reading.now = used[0] if used else "mse_strength"
    reading.set("objective.loss", {"mae_strength": "l1", "huber_strength": "huber"}.get(reading.now, "mse"))
    for name in used[1:]:
        reading.leave(NONE, name)
    if reading.now == "huber_strength":
        reading.now = "huber_delta"
        reading.set("objective.huber_c", given.get("huber_delta", 1.0))
        reading.set("objective.huber_schedule", "constant")
    if used and strengths[used[0]] != 1:
        reading.note(f"{used[0]} {strengths[used[0]]:g} is 1 here: AdamW's steps do not depend on it")
    reading.now = "loss_weight_fn"
    function = str(given.get("loss_weight_fn", "CONSTANT")).upper()
    if function == "MIN_SNR_GAMMA":
        reading.set("objective.weighting", "min_snr")
        reading.now = "loss_weight_strength"
        reading.set("objective.min_snr_gamma", given["loss_weight_strength"])
    elif function == "DEBIASED_ESTIMATION":
        reading.set("objective.weighting", "debiased_onetrainer")
    elif function == "CONSTANT":
        reading.set("objective.weighting", "none")
    else:
        reading.leave(NONE)


def ema(reading: Reading, value: Any) -> None:
    if str(value).upper() == "OFF":
        reading.taken.setdefault("ema", [])
        return
    reading.set("optimizer.ema_decay", reading.given["ema_decay"])
    reading.note(
        "the moving average is updated in each step here; ema_update_step_interval there says how often"
    )


def optimizer(reading: Reading, value: Any) -> None:
    word = str(value).lower()
    if word in OPTIMIZERS:
        reading.set("optimizer.name", OPTIMIZERS[word])
    else:
        reading.leave(NONE)


def beta(reading: Reading, _value: Any) -> None:
    given = reading.given
    betas = [given.get(f"optimizer.{n}") or d for n, d in (("beta1", 0.9), ("beta2", 0.999))]
    reading.set("optimizer.betas", [number(reading.now, b) for b in betas])


def warm(reading: Reading, value: Any) -> None:
    share = number(reading.now, value)
    if 0 < share <= 1:
        reading.note(
            "warm-up as a share of the run is not known before the pictures are; -1 is 5 % of the steps"
        )
        reading.set("optimizer.warmup_steps", -1)
    else:
        reading.set("optimizer.warmup_steps", share)


def perturbed(reading: Reading, value: Any) -> None:
    reading.set("objective.input_perturbation", value)
    reading.note("the perturbation is in the target too there; here only in what the network sees")


_PARTS = (
    "unet",
    "transformer",
    "prior",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
)
FIELDS = {
    **dict.fromkeys(
        (
            "training_method",
            "__version",
            "peft_type",
            "lora_rank",
            "lora_alpha",
            "lora_decompose",
            "layer_filter",
            "learning_rate",
            "learning_rate_scaler",
            "timestep_distribution",
            "noising_bias",
            "noising_weight",
            "timestep_shift",
            "dynamic_timestep_shifting",
            "mse_strength",
            "mae_strength",
            "huber_strength",
            "huber_delta",
            "loss_weight_fn",
            "loss_weight_strength",
            "ema_decay",
            "oft_block_size",
            "lokr_dim",
            *(f"{part}.{name}" for part in _PARTS for name in ("learning_rate", "train", "include")),
        ),
        together,
    ),
    "epochs": to("epochs"),
    "batch_size": to("data.batch_size"),
    "gradient_accumulation_steps": to("optimizer.accumulation"),
    "learning_rate_scheduler": choice("optimizer.schedule", SCHEDULES),
    "learning_rate_warmup_steps": warm,
    "learning_rate_cycles": to("optimizer.cycles"),
    "clip_grad_norm": to("optimizer.max_grad_norm"),
    "optimizer.optimizer": optimizer,
    "optimizer.weight_decay": to("optimizer.weight_decay"),
    "optimizer.eps": to("optimizer.eps"),
    "optimizer.beta1": beta,
    "optimizer.beta2": beta,
    "ema": ema,
    "train_dtype": choice("memory.precision", _PRECISIONS),
    "compile": to("memory.compile"),
    "resolution": side,
    "dropout_probability": to("adapter.dropout"),
    "offset_noise_weight": to("objective.noise_offset"),
    "perturbation_noise_weight": perturbed,
    "min_noising_strength": to("objective.t_min"),
    "max_noising_strength": to("objective.t_max"),
    "text_encoder.dropout_probability": to("objective.caption_dropout"),
    "transformer.guidance_scale": to("objective.guidance"),
    "masked_training": to("objective.masked"),
    "unmasked_weight": to("objective.unmasked_weight"),
    "masked_prior_preservation_weight": when_on(lambda r, _: r.leave(NONE)),
}

_FAMILIES = {
    r"STABLE_DIFFUSION_15": "sd_v1",
    r"STABLE_DIFFUSION_2": "sd_v2",
    r"STABLE_DIFFUSION_XL": "sdxl_base_v1-0",
    r"STABLE_DIFFUSION_3": "sd3",
    r"FLUX_2": "flux2",
    r"FLUX": "flux1",
    r"CHROMA": "chroma",
    r"QWEN": "qwen_image",
    r"Z_IMAGE": "z_image",
    r"PIXART": "pixart",
    r"HUNYUAN_VIDEO": "hunyuan_video",
    r"HI_DREAM": "hidream",
    r"ANIMA": "anima",
    r"KREA_2": "krea2",
}

ONETRAINER = Tool(
    title="OneTrainer",
    source=f"Nerogar/OneTrainer, TrainConfig of version {VERSION}, August 2026",
    signs=frozenset({"training_method", "lora_rank", "concept_file_name", "timestep_distribution"}),
    fields=FIELDS,
    left={
        NONE: "lora_decompose_* lokr_* oft_* custom_learning_rate_scheduler scheduler_params"
        " learning_rate_min_factor"
        " log_cosh_strength vb_loss_strength loss_scaler generalized_offset_noise unmasked_probability"
        " rescale_noise_scheduler_to_zero_terminal_snr force_v_prediction force_epsilon_prediction"
        " normalize_masked_area_loss embedding* additional_embeddings* preserve_embedding_norm"
        " custom_conditioning_image layer_filter_* ema_update_step_interval optimizer.* optimizer_defaults*"
        " force_circular_padding lora_weight_dtype fallback_train_dtype lora_model_name",
        DATA: "concepts* aspect_ratio_bucketing frames text_encoder*_sequence_length",
        SAMPLES: "sample* samples* non_ema_sampling validat*",
        FILES: "output_* workspace_dir cache_dir debug_* tensorboard* save_* backup_* rolling_* secrets*"
        " cloud*"
        " include_train_config prevent_overwrites continue_last_backup bundle_additional_embeddings"
        " only_cache"
        " clear_cache_before_training",
        MEMORY: "gradient_checkpointing* dataloader_threads train_device temp_device enable_*"
        " attention_mechanism"
        " async_* multi_gpu device_indexes gradient_reduce_precision fused_* quantization*"
        " layer_offload_fraction"
        " embedding_weight_dtype",
        MODEL: "model_type vae* effnet_encoder* decoder* unconditional_transformer* text_encoder*_layer_skip"
        " unet.* transformer.* prior.* text_encoder.* text_encoder_2.* text_encoder_3.* text_encoder_4.*",
        PATH: "base_model_name concept_file_name sample_definition_file_name huggingface_cache_dir"
        " offline_mode",
        ALWAYS: "latent_caching",
    },
    defaults={
        "peft_type": "LORA",
        "lora_rank": 16,
        "lora_alpha": 1.0,
        "oft_block_size": 32,
        "lokr_dim": 16,
        "learning_rate": 3e-6,
        "learning_rate_scheduler": "CONSTANT",
        "learning_rate_warmup_steps": 200.0,
        "epochs": 100,
        "batch_size": 1,
        "gradient_accumulation_steps": 1,
        "ema": "OFF",
        "ema_decay": 0.999,
        "clip_grad_norm": 1.0,
        "timestep_distribution": "UNIFORM",
        "loss_weight_strength": 5.0,
        "mse_strength": 1.0,
        "optimizer.optimizer": "ADAMW",
        "masked_training": False,
    },
    always=(lora_only, adapter, layers, rate, levels, loss),
    families=_FAMILIES,
    family_from=("model_type",),
)
