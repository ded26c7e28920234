"""diffusers' example scripts that train a LoRA, by their arguments."""

from __future__ import annotations

from typing import Any

from ..tool import (
    ALWAYS,
    DATA,
    FILES,
    MEMORY,
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
from .common import OPTIMIZERS, PRECISIONS, crop, min_snr, schedule, side, warmup

_DENSITIES = {"none": "uniform", "uniform": "uniform", "logit_normal": "logit_normal", "mode": "mode"}


def adapter(reading: Reading) -> None:
    """alpha is the rank in the scripts that have no lora_alpha, and 4 in those that have one."""
    given = reading.given
    reading.now = "rank"
    reading.set("adapter.rank", given["rank"])
    reading.set("adapter.init", "gaussian")
    reading.set("adapter.targets", "attention+feed-forward" if "flux" in reading.script else "attention")
    if not is_off(given.get("lora_alpha")):
        reading.now = "lora_alpha"
        reading.set("adapter.alpha", given["lora_alpha"])
    elif any(n in reading.script for n in ("flux", "qwen", "z_image", "hidream", "krea")):
        reading.set("adapter.alpha", 4.0)
        reading.note("lora_alpha is not given, and 4 in this script whatever the rank is")
    else:
        reading.set("adapter.alpha", given["rank"])
    if not is_off(given.get("lora_layers")):
        reading.now = "lora_layers"
        reading.leave(NONE)


def rates(reading: Reading) -> None:
    given, reading.now = reading.given, "learning_rate"
    sdxl = reading.script not in ("", "train_dreambooth_lora.py")
    rate = number("learning_rate", given.get("learning_rate", 1e-4 if sdxl else 5e-4))
    if truth(given.get("scale_lr", False)):
        factor = number("train_batch_size", given["train_batch_size"]) * number(
            "gradient_accumulation_steps", given["gradient_accumulation_steps"]
        )
        rate *= factor
        reading.note(f"scale_lr: the rate is multiplied by {factor:g}, as there on one process")
    reading.set("optimizer.learning_rate", rate)
    if truth(given.get("train_text_encoder", False)):
        own = not is_off(given.get("text_encoder_lr"))
        reading.now = "text_encoder_lr" if own else "train_text_encoder"
        reading.set("optimizer.text_encoder_lr", given["text_encoder_lr"] if own else rate)


def steps(reading: Reading) -> None:
    given = reading.given
    if not is_off(given.get("max_train_steps")):
        reading.now = "max_train_steps"
        reading.set("steps", given["max_train_steps"])
    else:
        reading.now = "num_train_epochs"
        reading.set("epochs", given["num_train_epochs"])


def optimizer(reading: Reading) -> None:
    given, reading.now = reading.given, "optimizer"
    word = str(given.get("optimizer", "AdamW")).lower()
    if word not in OPTIMIZERS:
        reading.leave(NONE)
        return
    eight = truth(given.get("use_8bit_adam", False)) and word == "adamw"
    if eight:
        reading.now = "use_8bit_adam"
    reading.set("optimizer.name", "adamw8bit" if eight else OPTIMIZERS[word])
    reading.now = "adam_beta1"
    reading.set("optimizer.betas", [number(n, given[n]) for n in ("adam_beta1", "adam_beta2")])


def levels(reading: Reading) -> None:
    given, reading.now = reading.given, "weighting_scheme"
    word = str(given.get("weighting_scheme") or "").lower()
    if word in ("sigma_sqrt", "cosmap"):
        reading.set("objective.weighting", word)
        word = "uniform"
    if word in _DENSITIES:
        reading.set("objective.timestep_sampling", _DENSITIES[word])
        reading.note(
            "noise levels are drawn on the scheduler's own table there: set shift to that of its config"
        )
    elif word:
        reading.leave(NONE)


def prior(reading: Reading) -> None:
    given = reading.given
    if not truth(given.get("with_prior_preservation", False)):
        return
    reading.now = "with_prior_preservation"
    reading.set("prior.method", "class_images")
    reading.now = "prior_loss_weight"
    reading.set("prior.weight", given["prior_loss_weight"])
    reading.now = "num_class_images"
    reading.set("prior.class_images", given["num_class_images"])
    if not is_off(given.get("class_prompt")):
        reading.now = "class_prompt"
        reading.set("prior.class_prompt", str(given["class_prompt"]))


def example_prompt(reading: Reading, value: Any) -> None:
    reading.set("preview.prompts", [str(value)])


def instance(reading: Reading, _value: Any) -> None:
    reading.leave(DATA)
    reading.note("instance_prompt is the caption of all pictures: write it as template of Caption Images")


_TOGETHER = (
    "rank lora_alpha lora_layers learning_rate scale_lr train_text_encoder text_encoder_lr max_train_steps"
    " num_train_epochs optimizer use_8bit_adam adam_beta1 adam_beta2 weighting_scheme with_prior_preservation"
    " prior_loss_weight num_class_images class_prompt"
)
DIFFUSERS = Tool(
    title="diffusers",
    source="huggingface/diffusers, examples/dreambooth and examples/text_to_image as of August 2026",
    signs=frozenset(
        {"instance_prompt", "instance_data_dir", "train_text_encoder", "adam_weight_decay", "lora_alpha"}
    ),
    fields={
        **dict.fromkeys(_TOGETHER.split(), together),
        "use_dora": when_on(lambda r, _: r.set("adapter.kind", "dora")),
        "lora_dropout": to("adapter.dropout"),
        "train_batch_size": to("data.batch_size"),
        "gradient_accumulation_steps": to("optimizer.accumulation"),
        "resolution": side,
        "seed": to("seed"),
        "lr_scheduler": schedule,
        "lr_warmup_steps": warmup("max_train_steps"),
        "lr_num_cycles": to("optimizer.cycles"),
        "lr_power": to("optimizer.power"),
        "adam_weight_decay": to("optimizer.weight_decay"),
        "adam_epsilon": to("optimizer.eps"),
        "max_grad_norm": to("optimizer.max_grad_norm"),
        "snr_gamma": min_snr,
        "noise_offset": to("objective.noise_offset"),
        "logit_mean": to("objective.logit_mean"),
        "logit_std": to("objective.logit_std"),
        "mode_scale": to("objective.mode_scale"),
        "guidance_scale": to("objective.guidance"),
        "caption_dropout": to("objective.caption_dropout"),
        "mixed_precision": choice("memory.precision", PRECISIONS),
        "center_crop": crop,
        "random_flip": to("framing.flip"),
        "validation_prompt": example_prompt,
        "checkpointing_steps": to("save.every"),
        "checkpoints_total_limit": to("save.keep"),
        "instance_prompt": instance,
        "use_ema": when_on(lambda r, _: r.leave(NONE)),
    },
    left={
        NONE: "prodigy_* adam_weight_decay_text_encoder do_edm_style_training class_labels_conditioning"
        " tokenizer_max_length text_encoder_use_attention_mask precondition_outputs lora_blocks"
        " prediction_type"
        " do_fp8_training bnb_quantization_config_path max_sequence_length",
        DATA: "instance_data_dir class_data_dir dataset_name dataset_config_name train_data_dir image_column"
        " caption_column repeats max_train_samples aspect_ratio_buckets use_aspect_ratio_buckets"
        " image_interpolation_mode",
        SAMPLES: "num_validation_images validation_epochs validation_images validation_steps"
        " skip_final_inference"
        " final_validation_prompt",
        FILES: "output_dir resume_from_checkpoint logging_dir push_to_hub hub_* report_to output_kohya_format"
        " upcast_before_saving debug_loss",
        MEMORY: "gradient_checkpointing allow_tf32 enable_xformers_memory_efficient_attention"
        " sample_batch_size"
        " prior_generation_precision local_rank dataloader_num_workers set_grads_to_none offload"
        " enable_npu_flash_attention fsdp_text_encoder",
        PATH: "pretrained_* revision variant tokenizer_name cache_dir",
        ALWAYS: "cache_latents pre_compute_text_embeddings",
    },
    defaults={
        "rank": 4,
        "train_batch_size": 4,
        "num_train_epochs": 1,
        "gradient_accumulation_steps": 1,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 500,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_weight_decay": 1e-2,
        "max_grad_norm": 1.0,
        "prior_loss_weight": 1.0,
        "num_class_images": 100,
        "center_crop": False,
        "seed": 0,
    },
    scripts=r"^train_(dreambooth|text_to_image)_lora\w*\.py$",
    always=(adapter, rates, steps, optimizer, levels, prior),
    families={
        r"lora_sdxl": "sdxl_base_v1-0",
        r"flux2": "flux2",
        r"flux": "flux1",
        r"sd3": "sd3",
        r"qwen": "qwen_image",
        r"z_image": "z_image",
        r"lumina2": "lumina2",
        r"hidream": "hidream",
        r"krea2": "krea2",
        r"_lora\.py": "sd_v1",
    },
)
