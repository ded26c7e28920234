"""kohya's sd-scripts and musubi-tuner, by their arguments; the same names in their TOML and on the"
" command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..tool import (
    ALWAYS,
    DATA,
    FILES,
    IDLE,
    MEMORY,
    MODEL,
    NONE,
    OTHER_NODES,
    PATH,
    SAMPLES,
    Converter,
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
from .common import (
    KOHYA_UNET,
    PRECISIONS,
    min_snr,
    optimizer,
    optimizer_args,
    schedule,
    side,
    warmup,
)

_KINDS = {"lora": "lora", "locon": "locon", "loha": "loha", "lokr": "lokr", "diag-oft": "oft", "full": "full"}
_SAMPLINGS = {"uniform": "uniform", "sigmoid": "sigmoid", "shift": "shift", "flux_shift": "flux_shift"}
_DENSITIES = {"none": "uniform", "uniform": "uniform", "logit_normal": "logit_normal", "mode": "mode"}


def rates(reading: Reading) -> None:
    """unet_lr goes before learning_rate; the text encoder trains unless only the network does."""
    given = reading.given
    reading.now = "unet_lr" if not is_off(given.get("unet_lr")) else "learning_rate"
    reading.set("optimizer.learning_rate", given[reading.now])
    if reading.now == "unet_lr" and truth(given.get("network_train_unet_only")):
        reading.leave(IDLE, "learning_rate")
    if truth(given.get("network_train_unet_only")):
        reading.now = "network_train_unet_only"
        reading.set("optimizer.text_encoder_lr", 0.0)
    elif "text_encoder_lr" in given or "network_train_unet_only" in given:
        reading.now = "text_encoder_lr"
        text = given.get("text_encoder_lr")
        rate = text[0] if isinstance(text, list) and text else text
        if isinstance(text, list) and len(set(map(str, text))) > 1:
            reading.note("text_encoder_lr has a rate for each text encoder; here they all have the first one")
        reading.set("optimizer.text_encoder_lr", rate if rate is not None else given.get("learning_rate"))
    if not is_off(given.get("network_train_text_encoder_only")):
        reading.now = "network_train_text_encoder_only"
        reading.leave(NONE)


def network(reading: Reading) -> None:
    """Kind, layers and starting values of the adapter, by network_module and network_args."""
    given, module = reading.given, str(reading.given.get("network_module") or "networks.lora")
    reading.now = "network_module"
    args = arguments(given.get("network_args"))
    kind = "lora"
    if module.startswith("lycoris"):
        kind = _KINDS.get(str(args.get("algo", "lora")).lower(), "")
        kind = "dora" if kind in ("lora", "locon") and truth(args.get("dora_wd")) else kind
    elif module.endswith(("loha", "lokr")):
        kind = module.rpartition(".")[2]
    elif not is_off(args.get("conv_dim")):
        kind = "locon"
    if kind:
        reading.set("adapter.kind", kind)
    else:
        reading.leave(NONE)
    if kind in ("lora", "dora", "locon", "full"):
        reading.set("adapter.targets", _targets(module))
    if kind == "oft":
        reading.note("OFT has no alpha here, and its rank is the largest size of a block")
    _rank(reading, kind)
    if not is_off(given.get("network_args")):
        reading.now = "network_args"
        _network_args(reading, args, kind)


def _rank(reading: Reading, kind: str) -> None:
    if kind == "full":
        reading.leave(IDLE, "network_dim")
        reading.leave(IDLE, "network_alpha")
        return
    reading.set("adapter.init", "kaiming")
    reading.now = "network_dim"
    reading.set("adapter.rank", reading.given["network_dim"] or 4)
    if kind != "oft":
        reading.now = "network_alpha"
        reading.set("adapter.alpha", reading.given["network_alpha"] or 0)


def arguments(value: Any) -> dict[str, str]:
    items = value if isinstance(value, list) else str(value or "").split()
    return {name: text for name, _, text in (str(item).partition("=") for item in items)}


def _targets(module: str) -> str:
    if module == "networks.lora" or module.startswith("lycoris"):
        return KOHYA_UNET
    unmodulated = ("qwen", "zimage", "wan", "sd3")
    return "attention+feed-forward" if any(n in module for n in unmodulated) else "all linear"


BY_BLOCK = ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")


def _network_args(reading: Reading, args: dict[str, str], kind: str) -> None:
    known = {"algo", "dora_wd"}
    by_block = [f"{name}={value}" for name, value in args.items() if name in BY_BLOCK and not is_off(value)]
    if by_block:  # in the spelling of lr_by_block too
        reading.set("adapter.lr_by_block", "\n".join(by_block))
    for name, value in args.items():
        if name in known:
            reading.taken.setdefault("network_args", [])
        elif name in BY_BLOCK:
            pass
        elif name == "loraplus_lr_ratio":
            reading.set("optimizer.lora_plus_ratio", value)
        elif name in ("conv_dim", "conv_alpha") and kind == "locon":
            own = reading.given["network_dim" if name == "conv_dim" else "network_alpha"]
            if not is_off(value) and number(name, value) != number(name, own):
                reading.note(
                    f"{name} {value} differs from the linear layers' {own}; here convolutions have theirs"
                )
        elif not is_off(value):
            reading.given[f"network_args {name}"] = value
            reading.leave(NONE, f"network_args {name}")


def steps(reading: Reading) -> None:
    if not is_off(reading.given.get("max_train_epochs")):
        reading.now = "max_train_epochs"
        reading.set("epochs", reading.given["max_train_epochs"])
        reading.leave(IDLE, "max_train_steps")
    else:
        reading.now = "max_train_steps"
        reading.set("steps", reading.given["max_train_steps"])


_OF_FLOW = ("timestep_sampling", "weighting_scheme", "discrete_flow_shift", "model_prediction_type")
_OF_FLOW += ("guidance_scale", "sigmoid_scale", "logit_mean", "logit_std", "mode_scale")
_OF_EPS = (
    "min_snr_gamma",
    "debiased_estimation_loss",
    "scale_v_pred_loss_like_noise_pred",
    "v_pred_like_loss",
)
_FLOW = r"flux|sd3|lumina|chroma|anima|hunyuan|qwen|zimage|wan|krea|kandinsky|hv|fpack"


def unused(reading: Reading) -> None:
    """What the scripts for this kind of model do not look at."""
    given = reading.given
    module = f"{given.get('network_module')} {reading.script}"
    for name in _OF_EPS if "dit" in given or re.search(_FLOW, module) else _OF_FLOW:
        if name in given and not is_off(given[name]):
            reading.leave(IDLE, name)


def levels(reading: Reading) -> None:
    """timestep_sampling, of which `sigma` is the density of weighting_scheme at a shifted schedule."""
    given = reading.given
    if "timestep_sampling" in reading.left.get(IDLE, {}):
        return
    sampling = str(given.get("timestep_sampling") or "")
    reading.now = "timestep_sampling"
    if sampling in _SAMPLINGS:
        reading.set("objective.timestep_sampling", _SAMPLINGS[sampling])
    elif sampling == "sigma":
        density = str(given.get("weighting_scheme", "none")).lower()
        if density in _DENSITIES:
            reading.set("objective.timestep_sampling", _DENSITIES[density])
    elif sampling:
        reading.leave(NONE)
    if sampling in ("sigma", "shift") and "discrete_flow_shift" in given:
        reading.now = "discrete_flow_shift"
        reading.set("objective.shift", given["discrete_flow_shift"] or 0)
    elif "discrete_flow_shift" in given:
        reading.leave(IDLE, "discrete_flow_shift")


def weights(reading: Reading) -> None:
    """weighting_scheme, which is a weight of the loss or, with `sigma`, a density of the noise levels."""
    given = reading.given
    if "weighting_scheme" in reading.left.get(IDLE, {}):
        return
    sampling = str(given.get("timestep_sampling") or "")
    weighting = str(given.get("weighting_scheme") or "").lower()
    reading.now = "weighting_scheme"
    if weighting in ("sigma_sqrt", "cosmap"):
        reading.set("objective.weighting", weighting)
    elif weighting and weighting not in _DENSITIES:
        reading.leave(NONE)
    if weighting in ("logit_normal", "mode") and sampling not in ("", "sigma"):
        reading.note(f"weighting_scheme {weighting} counts there only with timestep_sampling sigma")


def prior(reading: Reading, value: Any) -> None:
    """kohya averages over both kinds of pictures, which is half of our sum at weight 1."""
    if not is_off(reading.given.get("reg_data_dir")):
        reading.set("prior.method", "class_images")
        reading.set("prior.weight", value)
        reading.note(
            "regularization pictures: the loss is a mean over both kinds there, and a sum here: with as many"
            " of each twice the mean, which changes AdamW's steps only where gradients are clipped"
        )
    else:
        reading.leave(IDLE)


def weighted(reading: Reading, _value: Any) -> None:
    reading.note("weighted captions: set caption_syntax of Train LoRA to comfyui")
    reading.leave(OTHER_NODES)


def regularization(reading: Reading, _value: Any) -> None:
    reading.leave(DATA)


def prediction(reading: Reading, value: Any) -> None:
    if str(value) == "raw":
        reading.taken.setdefault(reading.now, [])
    else:
        reading.leave(NONE)


_LOSSES = {"l2": "mse", "huber": "huber", "smooth_l1": "huber", "l1": "l1"}

FIELDS: dict[str, Converter] = {
    **dict.fromkeys(
        (
            "learning_rate",
            "unet_lr",
            "text_encoder_lr",
            "network_train_unet_only",
            "network_module",
            "network_args",
            "network_dim",
            "network_alpha",
            "max_train_steps",
            "max_train_epochs",
            "timestep_sampling",
            "weighting_scheme",
            "discrete_flow_shift",
            "network_train_text_encoder_only",
        ),
        together,
    ),
    "network_dropout": to("adapter.dropout"),
    "optimizer_type": optimizer,
    "optimizer_args": optimizer_args,
    "use_8bit_adam": when_on(lambda r, _: r.set("optimizer.name", "adamw8bit")),
    "use_lion_optimizer": when_on(lambda r, _: r.set("optimizer.name", "lion")),
    "lr_scheduler": schedule,
    "lr_warmup_steps": warmup("max_train_steps"),
    "lr_scheduler_num_cycles": to("optimizer.cycles"),
    "lr_scheduler_power": to("optimizer.power"),
    "max_grad_norm": to("optimizer.max_grad_norm"),
    "gradient_accumulation_steps": to("optimizer.accumulation"),
    "train_batch_size": to("data.batch_size"),
    "resolution": side,
    "seed": to("seed"),
    "mixed_precision": choice("memory.precision", PRECISIONS),
    "min_snr_gamma": min_snr,
    "debiased_estimation_loss": when_on(lambda r, _: r.set("objective.weighting", "debiased_kohya")),
    "noise_offset": to("objective.noise_offset"),
    "ip_noise_gamma": to("objective.input_perturbation"),
    "loss_type": choice("objective.loss", _LOSSES),
    "huber_c": to("objective.huber_c"),
    "huber_schedule": choice("objective.huber_schedule", {n: n for n in ("constant", "exponential", "snr")}),
    "min_timestep": scaled("objective.t_min", 1e-3),
    "max_timestep": scaled("objective.t_max", 1e-3),
    "sigmoid_scale": to("objective.sigmoid_scale"),
    "logit_mean": to("objective.logit_mean"),
    "logit_std": to("objective.logit_std"),
    "mode_scale": to("objective.mode_scale"),
    "guidance_scale": to("objective.guidance"),
    "model_prediction_type": prediction,
    "caption_dropout_rate": to("objective.caption_dropout"),
    "caption_tag_dropout_rate": to("objective.tag_dropout"),
    "shuffle_caption": to("objective.tag_shuffle"),
    "keep_tokens": to("objective.keep_tags"),
    "weighted_captions": when_on(weighted),
    "masked_loss": to("objective.masked"),
    "prior_loss_weight": prior,
    "reg_data_dir": regularization,
    "flip_aug": to("framing.flip"),
    "random_crop": when_on(lambda r, _: r.set("framing.crop", "random")),
    "bucket_no_upscale": when_on(lambda r, _: r.set("framing.upscaling", "own_size")),
    "bucket_reso_steps": choice("framing.step", {str(n): n for n in (8, 16, 32, 64)}),
    "alpha_mask": to("framing.alpha_mask"),
    "save_every_n_steps": to("save.every"),
    "save_last_n_steps_state": to("save.keep"),
    "sample_every_n_steps": to("preview.every"),
}

LEFT = {
    NONE: "scale_weight_norms base_weights base_weights_multiplier dim_from_weights multires_noise_iterations"
    " multires_noise_discount adaptive_noise_scale noise_offset_random_strength"
    " ip_noise_gamma_random_strength zero_terminal_snr v_pred_like_loss"
    " scale_v_pred_loss_like_noise_pred huber_scale full_fp16 full_bf16 clip_skip token_warmup_min"
    " token_warmup_step lr_scheduler_type lr_scheduler_args lr_decay_steps lr_scheduler_timescale"
    " lr_scheduler_min_lr_ratio fp8_base fp8_base_unet caption_dropout_every_n_epochs"
    " keep_tokens_separator secondary_separator enable_wildcard training_shift clip_l_dropout_rate"
    " clip_g_dropout_rate t5_dropout_rate pos_emb_random_crop_rate enable_scaled_pos_embed"
    " apply_t5_attn_mask apply_lg_attn_mask split_mode initial_epoch initial_step"
    " skip_until_initial_step validation_split validation_seed validate_every_n_steps"
    " validate_every_n_epochs max_validation_steps system_prompt self_attn_lr cross_attn_lr mlp_lr"
    " mod_lr llm_adapter_lr num_timestep_buckets preserve_distribution_shape show_timesteps fp8_scaled"
    " fp8_llm fp8_t5 fp8_vl remove_first_image_from_target num_layers dino_loss_* *nabla_* i2v_mode"
    " ideogram4_* initial_sigma noise_clip_std noise_scale_* sampler_preset scheduler_scale"
    " skip_t2i_visual_dummy validate_caption_structure warn_on_caption_issues timestep_boundary"
    " one_frame f1 latent_window_size bulk_decode",
    DATA: "train_data_dir dataset_config in_json enable_bucket min_bucket_reso max_bucket_reso"
    " caption_extension caption_extention caption_separator caption_prefix caption_suffix color_aug"
    " face_crop_aug_range conditioning_data_dir dataset_repeats resize_interpolation dataset_class"
    " max_token_length t5xxl_max_token_length gemma2_max_token_length qwen3_max_token_length"
    " t5_max_token_length debug_dataset support_*",
    SAMPLES: "sample_prompts sample_sampler sample_every_n_epochs sample_at_first sample_batch_size"
    " flow_shift",
    FILES: "output_dir output_name huggingface_* save_state_to_huggingface resume_from_huggingface"
    " async_upload"
    " save_precision save_every_n_epochs save_n_epoch_ratio save_last_n_epochs save_last_n_epochs_state"
    " save_last_n_steps save_state save_state_on_train_end save_model_as use_safetensors no_metadata"
    " training_comment logging_dir log_* wandb_* metadata_* console_log_* output_config",
    MEMORY: "mem_eff_attn torch_compile compile* dynamo_* xformers sdpa flash_attn flash3 sage_attn"
    " split_attn"
    " attn_mode use_flash_attn use_sage_attn max_data_loader_n_workers persistent_data_loader_workers"
    " gradient_checkpointing* ddp_* lowram lowvram highvram blocks_to_swap fused_backward_pass deepspeed"
    " zero* offload* fp16_master_weights_and_gradients cpu_offload_checkpointing vae_*"
    " img_in_txt_in_offloading"
    " use_pinned_memory_for_block_swap block_swap_* disable_* cuda_* vae_tiling text_encoder_dtype"
    " text_encoder_batch_size t5xxl_device t5xxl_dtype no_half_vae skip_cache_check cache_info"
    " use_32bit_attention fp8_text_encoder no_vae_load"
    ""
    " force_v2_1_time_embedding",
    MODEL: "v2 v_parameterization model_type task dit_dtype dit_in_channels save_clip save_t5xxl",
    PATH: "pretrained_model_name_or_path vae ae clip_l clip_g t5xxl t5 clip gemma2 qwen3 dit dit_high_noise"
    " text_encoder text_encoder1 text_encoder2 image_encoder byt5 llm_adapter_path t5_tokenizer_path"
    " override_dit turbo_dit* unconditional_dit use_unconditional_dit_for_lora_sampling"
    " text_encoder_clip text_encoder_qwen tokenizer_cache_dir controlnet_model_name_or_path"
    " network_weights resume config_file",
    ALWAYS: "cache_latents cache_latents_to_disk cache_text_encoder_outputs"
    " cache_text_encoder_outputs_to_disk",
}

FAMILIES = {
    r"sdxl_": "sdxl_base_v1-0",
    r"flux_2|lora_flux_2": "flux2",
    r"chroma": "chroma",
    r"flux": "flux1",
    r"sd3": "sd3",
    r"qwen_image": "qwen_image",
    r"zimage": "z_image",
    r"wan": "wan2.1",
    r"lumina": "lumina2",
    r"anima": "anima",
    r"krea2": "krea2",
    r"hv_train": "hunyuan_video",
    r"\bv2=(true|True|1)": "sd_v2",
    r"(^| )train_network\.py": "sd_v1",
}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "clip_skip": (1,),
    "multires_noise_discount": (0.3,),
    "huber_scale": (1,),
    "token_warmup_min": (1,),
    "lr_scheduler_num_cycles": (1,),
    "lr_scheduler_power": (1,),
}
"""What changes nothing there."""
ALWAYS_THERE = (unused, network, rates, steps, levels, weights)
DEFAULTS = {
    "network_dim": 4,
    "network_alpha": 1,
    "learning_rate": 2e-6,
    "max_train_steps": 1600,
    "max_grad_norm": 1.0,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "optimizer_type": "adamw",
    "gradient_accumulation_steps": 1,
    "keep_tokens": 0,
    "masked_loss": False,
    "seed": 0,
}


def without_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """The scripts read the sections of a TOML as one table."""
    return {name.rpartition(".")[2]: value for name, value in values.items()}


KOHYA = Tool(
    title="kohya sd-scripts",
    source="kohya-ss/sd-scripts, its arguments as of February 2026",
    signs=frozenset({"network_module", "network_dim", "network_alpha", "unet_lr", "network_args"}),
    fields=FIELDS,
    left=LEFT,
    defaults=DEFAULTS | {"train_batch_size": 1, "network_train_unet_only": False},
    scripts=r"^(sdxl_|flux_|sd3_|lumina_|anima_|hunyuan_image_)?train_network\.py$",
    always=ALWAYS_THERE,
    neutral=NEUTRAL,
    rename=without_sections,
    families=FAMILIES,
    family_from=("network_module", "v2", "model_type"),
)
MUSUBI = Tool(
    title="musubi-tuner",
    source="kohya-ss/musubi-tuner, its arguments as of June 2026",
    signs=frozenset({"dit", "dit_high_noise", "fp8_llm"}),
    fields=FIELDS,
    left=LEFT,
    defaults=DEFAULTS
    | {"timestep_sampling": "sigma", "weighting_scheme": "none", "discrete_flow_shift": 1.0},
    scripts=r"^(hv|hv_1_5|wan|fpack|flux_kontext|flux_2|qwen_image|zimage|krea2|kandinsky5)_train_network\.py$",
    always=ALWAYS_THERE,
    neutral=NEUTRAL,
    rename=without_sections,
    families=FAMILIES,
    family_from=("network_module", "task"),
)
