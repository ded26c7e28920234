"""SimpleTuner, by the names of its config.json, with or without the dashes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ..tool import (
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
from .common import OPTIMIZERS, PRECISIONS, SCHEDULES, min_snr, warmup

_INITS = {"default": "kaiming", "gaussian": "gaussian"}
_MEGAPIXEL = 1024


def without_dashes(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lstrip("-"): value for name, value in values.items()}


def lora_only(reading: Reading) -> None:
    given, reading.now = reading.given, "model_type"
    kind = str(given.get("model_type", "full")).lower()
    if kind != "lora":
        raise ConfigError(f"config: model_type is {kind[:40]}; only lora can be trained here")
    reading.taken["model_type"] = []
    reading.now = "lora_type"
    if str(given["lora_type"]).lower() != "standard":
        reading.leave(NONE)
    reading.now = "use_dora" if truth(given.get("use_dora", False)) else "lora_type"
    reading.set("adapter.kind", "dora" if reading.now == "use_dora" else "lora")
    reading.set("adapter.targets", "attention")
    reading.now = "lora_rank"
    reading.set("adapter.rank", given["lora_rank"])
    reading.now = "lora_alpha" if not is_off(given.get("lora_alpha")) else "lora_rank"
    reading.set("adapter.alpha", given[reading.now])


def steps(reading: Reading) -> None:
    given = reading.given
    reading.now = "num_train_epochs" if is_off(given.get("max_train_steps")) else "max_train_steps"
    reading.set("epochs" if reading.now == "num_train_epochs" else "steps", given[reading.now])
    if truth(given.get("train_text_encoder", False)):
        reading.now = "text_encoder_lr" if "text_encoder_lr" in given else "train_text_encoder"
        reading.set("optimizer.text_encoder_lr", given.get("text_encoder_lr") or given["learning_rate"])


def optimizer(reading: Reading, value: Any) -> None:
    word = str(value).lower()
    plain = {
        "adamw_bf16": "adamw",
        "bnb-adamw8bit": "adamw8bit",
        "bnb-adamw": "adamw",
        "bnb-lion8bit": "lion8bit",
        "optimi-lion": "lion",
        "optimi-adamw": "adamw",
        "adamw_schedulefree": "schedule_free_adamw",
    }
    found = plain.get(word) or OPTIMIZERS.get(word)
    if found is None:
        reading.leave(NONE)
        return
    reading.set("optimizer.name", found)
    if word == "adamw_bf16":
        reading.note("adamw_bf16 keeps weights and state in bf16; here both are fp32")


def size(reading: Reading, value: Any) -> None:
    """In pixels, or in megapixels with resolution_type area; 1 megapixel is 1024 × 1024."""
    kind = str(reading.given.get("resolution_type", "pixel_area"))
    own = number(reading.now, value)
    if kind == "area":
        reading.note(f"rounded: {own:g} megapixels became the side {round(own**0.5 * _MEGAPIXEL)}")
        own = round(own**0.5 * _MEGAPIXEL)
    elif kind == "pixel":
        reading.note("resolution is the shorter side there, and the side of a square of the same area here")
    reading.set("data.resolution", own)


def levels(reading: Reading) -> None:
    """Of flow models: sigmoid of a normal draw, then the shift."""
    given, flow = (
        reading.given,
        reading.given.get("model_family") not in ("sd1x", "sd2x", "sdxl", "kolors", "pixart_sigma"),
    )
    if not flow:
        return
    reading.now = "flow_schedule_shift"
    uniform = truth(given.get("flow_use_uniform_schedule", False))
    reading.set("objective.timestep_sampling", "uniform" if uniform else "sigmoid")
    reading.set("objective.shift", given["flow_schedule_shift"] or 0)


def prompt(reading: Reading, value: Any) -> None:
    reading.set("preview.prompts", [str(value)])


def offset(reading: Reading, value: Any) -> None:
    if truth(reading.given.get("offset_noise", False)):
        reading.set("objective.noise_offset", value)
    else:
        reading.leave(NONE)


SIMPLETUNER = Tool(
    title="SimpleTuner",
    source="bghira/SimpleTuner, its options as of August 2026",
    signs=frozenset({"model_family", "data_backend_config", "lora_type", "base_model_precision"}),
    fields={
        **dict.fromkeys(
            [
                "model_type",
                "lora_type",
                "use_dora",
                "lora_rank",
                "lora_alpha",
                "max_train_steps",
                "num_train_epochs",
                "train_text_encoder",
                "text_encoder_lr",
                "flow_schedule_shift",
                "flow_use_uniform_schedule",
                "resolution_type",
                "offset_noise",
            ],
            together,
        ),
        "lora_dropout": to("adapter.dropout"),
        "lora_init_type": choice("adapter.init", _INITS),
        "learning_rate": to("optimizer.learning_rate"),
        "lr_scheduler": choice("optimizer.schedule", {**SCHEDULES, "sine": "cosine_with_restarts"}),
        "lr_warmup_steps": warmup("max_train_steps"),
        "lr_power": to("optimizer.power"),
        "lr_num_cycles": to("optimizer.cycles"),
        "optimizer": optimizer,
        "adam_weight_decay": to("optimizer.weight_decay"),
        "adam_epsilon": to("optimizer.eps"),
        "max_grad_norm": to("optimizer.max_grad_norm"),
        "train_batch_size": to("data.batch_size"),
        "gradient_accumulation_steps": to("optimizer.accumulation"),
        "seed": to("seed"),
        "resolution": size,
        "mixed_precision": choice("memory.precision", PRECISIONS),
        "snr_gamma": min_snr,
        "loss_type": choice("objective.loss", {"l2": "mse", "huber": "huber", "smooth_l1": "huber"}),
        "huber_c": to("objective.huber_c"),
        "huber_schedule": choice(
            "objective.huber_schedule", {n: n for n in ("constant", "exponential", "snr")}
        ),
        "noise_offset": offset,
        "input_perturbation": to("objective.input_perturbation"),
        "caption_dropout_probability": to("objective.caption_dropout"),
        "flow_sigmoid_scale": to("objective.sigmoid_scale"),
        "flux_guidance_value": to("objective.guidance"),
        "use_ema": when_on(lambda r, _: r.set("optimizer.ema_decay", r.given["ema_decay"])),
        "ema_decay": together,
        "validation_prompt": prompt,
        "validation_negative_prompt": to("preview.negative"),
        "validation_guidance": to("preview.cfg"),
        "validation_num_inference_steps": to("preview.steps"),
        "validation_seed": to("preview.seed"),
        "validation_step_interval": to("preview.every"),
        "validation_steps": to("preview.every"),
        "checkpoint_step_interval": to("save.every"),
        "checkpointing_steps": to("save.every"),
        "checkpoints_total_limit": to("save.keep"),
    },
    left={
        NONE: "lora_* peft_lora_* lycoris_config singlora_* slider_* flux_lora_target flux_guidance_mode"
        " flux_attention_masked_training flux_fast_schedule flow_* noise_offset_*"
        " input_perturbation_steps use_soft_min_snr soft_min_snr_* prediction_type"
        " rescale_betas_zero_snr timestep_bias_* training_scheduler_timestep_spacing crepa_* urepa_*"
        " irepa_* layersync_* twinflow_* tread_* scheduled_sampling_* diff2flow_* mixflow_* init_lora*"
        " init_lokr_norm lr_end lr_scale* optimizer_* adam_beta* prodigy_* layer_freeze_*"
        " freeze_encoder_* ema_* t5_padding tokenizer_max_length assistant_lora_*"
        " disable_assistant_lora use_ema_* gradient_precision webhook_* masked_loss_probability"
        " grad_clip_method internal_guidance_* nextlat_* xm_* audio_flow_* minimax_* cosmos3_*"
        " sla_config disable_segmented_timestep_sampling refiner_training krea2_reference_latents"
        " max_grounding_entities data_aesthetic_score strict_epoch_limit"
        " custom_text_encoder_intermediary_layers diffusion_blocks_config",
        DATA: "data_backend_* instance_prompt only_instance_prompt prepend_instance_prompt caption_strategy"
        " aspect_bucket_* minimum_image_size maximum_image_size target_downsample_size metadata_*"
        " delete_* allow_dataset_oversubscription override_dataset_config skip_file_discovery"
        " preserve_data_backend_cache instance_data_dir disable_bucket_pruning *nsfw_*"
        " conditioning_multidataset_sampling text_encoder_limit",
        SAMPLES: "validation_* num_eval_images eval_* evaluation_type inference_* disable_benchmark"
        " deepfloyd_* *_validation_pipeline_mode *_validation_stage*_model"
        " wan_validation_load_other_stage",
        FILES: "output_dir logging_dir report_to tracker_* push_* hub_* resume_from_checkpoint"
        " model_card_* save_*"
        " modelspec_comment checkpoint_epoch_interval publishing_config print_* debug_* post_*",
        MEMORY: "gradient_checkpointing* quantize_* base_model_* text_encoder_*_precision attention_mechanism"
        " offload_* group_offload_* enable_group_offload ramtorch* musubi_* fuse_* dynamo_*"
        " deepspeed_* fsdp_* accelerate_* num_processes num_machines machine_rank main_process_*"
        " max_workers *_batch_size read_batch_size write_batch_size image_processing_batch_size"
        " dataloader_* torch_num_threads allow_tf32 disable_tf32 keep_vae_loaded vae_*"
        " compress_disk_cache cache_* i_know_what_i_am_doing text_cache_* text_embed_*"
        " set_grads_to_none aws_max_pool_connections unet_attention_slice sdnq_*"
        " delete_model_after_load same_network accelerator_cache_* context_parallel_*"
        " find_unused_parameters fully_unload_text_encoder enable_multiprocessing sageattention_usage"
        " quantization_config disk_low_*",
        MODEL: "model_family model_flavour control controlnet*",
        PATH: "pretrained_* *_model_name_or_path revision variant cache_dir cache_dir_* trust_remote_code",
    },
    defaults={
        "lora_type": "standard",
        "lora_rank": 16,
        "lora_dropout": 0.1,
        "learning_rate": 4e-7,
        "lora_init_type": "default",
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 0,
        "optimizer": "adamw_bf16",
        "adam_weight_decay": 1e-2,
        "max_grad_norm": 2.0,
        "train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "caption_dropout_probability": 0.1,
        "ema_decay": 0.995,
        "flow_schedule_shift": 3.0,
    },
    always=(lora_only, steps, levels),
    rename=without_dashes,
    families={
        r"=sd1x": "sd_v1",
        r"=sd2x": "sd_v2",
        r"=sdxl": "sdxl_base_v1-0",
        r"=flux2": "flux2",
        r"=flux": "flux1",
        r"=sd3": "sd3",
        r"=qwen_image": "qwen_image",
        r"=z_image|=zimage": "z_image",
        r"=wan": "wan2.1",
        r"=chroma": "chroma",
        r"=auraflow": "auraflow",
        r"=pixart": "pixart",
        r"=hidream": "hidream",
        r"=lumina2": "lumina2",
        r"=ltxvideo": "ltxv",
    },
    family_from=("model_family",),
)
