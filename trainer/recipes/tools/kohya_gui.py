"""kohya_ss, the GUI of sd-scripts, by the names of its JSON."""

from __future__ import annotations

from typing import Any

from ..tool import (
    ALWAYS,
    FILES,
    IDLE,
    MEMORY,
    MODEL,
    NONE,
    PATH,
    Reading,
    Tool,
    is_off,
    number,
    to,
    together,
    when_on,
)
from .common import optimizer, side
from .kohya import ALWAYS_THERE, BY_BLOCK, DEFAULTS, FAMILIES, FIELDS, LEFT, NEUTRAL


def _gui_names(values: Any) -> dict[str, Any]:
    """What the GUI makes of its fields for the scripts: 0 is left out, and its kinds are modules."""
    found = dict(values)
    for name in ("max_train_steps", "max_train_epochs", "unet_lr", "keep_tokens"):
        if str(found.get(name, "")) in ("0", ""):
            found[name] = None
    if found["max_train_steps"] is None and found["max_train_epochs"] is None:
        found["max_train_epochs"] = found.pop("epoch", None)
    if not is_off(found.get("lr_warmup")) and is_off(found.get("lr_warmup_steps")):
        found["lr_warmup_steps"] = number("lr_warmup", found["lr_warmup"]) / 100
    words = str(found.get("LoRA_type", "Standard"))
    algo = {"lycoris/loha": "loha", "lycoris/lokr": "lokr", "lycoris/locon": "locon", "lycoris/lora": "lora"}
    if (word := words.lower()) in algo:
        found["network_module"] = "lycoris.kohya"
        found["network_args"] = [f"algo={algo[word]}", f"dora_wd={found.get('dora_wd', False)}"]
    elif word in ("standard", "flux1", "sd3", "lumina", "kohya locon"):
        found["network_module"] = {
            "flux1": "networks.lora_flux",
            "sd3": "networks.lora_sd3",
            "lumina": "networks.lora_lumina",
        }.get(word, "networks.lora")
        own = [f"{name}={value}" for name in BY_BLOCK if not is_off(value := found.pop(name, None))]
        found["network_args"] = [f"conv_dim={found.get('conv_dim', 1)}"] * (word == "kohya locon") + own
    else:
        found["network_module"], found["network_args"] = "lycoris.kohya", [f"algo={word}"]
    # 0 is "not trained" for Flux's GUI and "as the learning rate" nowhere.
    found["network_train_unet_only"] = is_off(found.get("text_encoder_lr"))
    return found


_OF_LYCORIS = (
    "LyCORIS_preset bypass_mode constrain decompose_both factor rescaled train_norm unit use_cp use_scalar"
    " use_tucker train_on_input conv_alpha conv_dim rank_dropout_scale conv_block_alphas conv_block_dims"
)


def unused(reading: Reading) -> None:
    """What the GUI passes on for other kinds of adapter only."""
    if not str(reading.given["network_module"]).startswith("lycoris"):
        for name in _OF_LYCORIS.split():
            if not is_off(reading.given.get(name)):
                reading.leave(IDLE, name)
    if not is_off(reading.given.get("epoch")):
        reading.leave(IDLE, "epoch")


GUI = Tool(
    title="kohya_ss",
    source="bmaltais/kohya_ss, its presets as of July 2026",
    signs=frozenset({"LoRA_type", "max_resolution", "LyCORIS_preset"}),
    fields={
        **FIELDS,
        "LoRA_type": together,
        "max_resolution": side,
        "optimizer": optimizer,
        "lr_warmup": together,
        "sdxl": together,
        "loraplus_lr_ratio": when_on(to("optimizer.lora_plus_ratio")),
        "dora_wd": together,
        "epoch": together,
    },
    left={
        **LEFT,
        NONE: LEFT[NONE] + " LyCORIS_preset block_* conv_* bypass_mode constrain"
        " train_on_input"
        " decompose_both factor module_dropout rank_dropout rank_dropout_scale rescaled train_norm unit"
        " use_cp"
        " use_scalar use_tucker loraplus_text_encoder_lr_ratio loraplus_unet_lr_ratio noise_offset_type"
        " stop_text_encoder_training* train_blocks no_token_padding additional_parameters",
        MEMORY: LEFT[MEMORY]
        + " main_process_port multi_gpu gpu_ids num_* extra_accelerate_launch_args mem_eff_save",
        PATH: LEFT[PATH] + " lora_network_weights",
        FILES: LEFT[FILES] + " save_as_bool",
        MODEL: LEFT[MODEL] + " model_list flux1_checkbox sd3_checkbox",
        ALWAYS: LEFT[ALWAYS] + " flux1_cache_* sdxl_cache_* sd3_cache_* sdxl_no_half_vae",
    },
    defaults={n: v for n, v in DEFAULTS.items() if n != "optimizer_type"} | {"optimizer": "AdamW"},
    always=(unused, *ALWAYS_THERE),
    neutral={**NEUTRAL, "noise_offset_type": ("Original",), "train_blocks": ("all",)},
    rename=_gui_names,
    families={r"sdxl=True": "sdxl_base_v1-0", **FAMILIES, r"networks\.lora( |$)": "sd_v1"},
    family_from=("network_module", "sdxl", "v2"),
)
