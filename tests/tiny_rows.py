"""Sizes of the networks in tiny_models.py, one row a family of ComfyUI's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tiny:
    name: str
    config: str
    """Class in `comfy.supported_models`."""
    unet: Mapping[str, Any]
    latent: tuple[int, ...]
    """[C, (T,) H, W]"""
    text: Mapping[str, Any]
    """What the text encoder gives: name → shape of a random tensor, or a tensor."""
    from_file: bool = False
    markers: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors by which ComfyUI recognises the prediction type."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the config's sampling_settings."""


def _unet(**changes: Any) -> dict[str, Any]:
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 64,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "use_spatial_transformer": True,
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": 24,
        "use_linear_in_transformer": True,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
        **changes,
    }


_SDXL = _unet(
    transformer_depth=[0, 2],
    transformer_depth_output=[0, 0, 2, 2],
    transformer_depth_middle=2,
    num_classes="sequential",
    adm_in_channels=16 + 6 * 256,
)

_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 16,
    "context_in_dim": 24,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "txt_ids_dims": [],
}

_LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 64,
    "cap_feat_dim": 24,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "qk_norm": True,
    "multiple_of": 32,
    "axes_dims": [8, 12, 12],
    "axes_lens": [64, 64, 64],
}

_COSMOS = {
    "max_img_h": 64,
    "max_img_w": 64,
    "max_frames": 8,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "num_blocks": 2,
    "num_heads": 2,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "rope_enable_fps_modulation": False,
}

_WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 128,
    "ffn_dim": 128,
    "freq_dim": 256,
    "num_heads": 1,
    "num_layers": 2,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": 4096,  # not read from the file
}

ROWS = (
    Tiny(
        name="sd15",
        config="SD15",
        unet=_unet(use_linear_in_transformer=False),
        latent=(4, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (24,)},
    ),
    Tiny(
        name="sd2_v",
        config="SD20",
        unet=_unet(),
        latent=(4, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (24,)},
        markers={"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.linspace(-1, 1, 8)},
    ),
    Tiny(
        name="sdxl",
        config="SDXL",
        unet=_SDXL,
        latent=(4, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (16,)},
    ),
    Tiny(
        name="sdxl_v",
        config="SDXL",
        unet=_SDXL,
        latent=(4, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (16,)},
        markers={"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)},
    ),
    Tiny(
        name="sdxl_edm",
        config="SDXL",
        unet=_SDXL,
        latent=(4, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (16,)},
        markers={"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)},
    ),
    Tiny(
        name="kolors",
        config="SDXL",
        unet=_SDXL,
        latent=(4, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (16,)},
        sampling={"beta_schedule": "linear", "linear_start": 0.00085, "linear_end": 0.014, "timesteps": 1100},
    ),
    Tiny(
        name="sd3",
        config="SD3",
        unet={
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 16,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 24, "out_features": 128},
            },
            "num_patches": 64,
            "pos_embed_max_size": 8,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0],
        },
        latent=(16, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (16,)},
        from_file=True,
    ),
    Tiny(
        name="flux1",
        config="Flux",
        unet={"image_model": "flux", "guidance_embed": True, **_FLUX},
        latent=(16, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (16,)},
        from_file=True,
    ),
    Tiny(
        name="flux2",
        config="Flux2",
        unet={
            **_FLUX,
            "image_model": "flux2",
            "guidance_embed": True,
            "in_channels": 128,
            "out_channels": 128,
            "vec_in_dim": None,
            "axes_dim": [32, 32, 32, 32],
            "mlp_ratio": 3.0,
            "theta": 2000,
            "patch_size": 1,
            "qkv_bias": False,
            "txt_ids_dims": [3],
            "global_modulation": True,
            "mlp_silu_act": True,
            "ops_bias": False,
        },
        latent=(128, 4, 4),
        text={"cross_attn": (7, 24)},
        from_file=True,
    ),
    Tiny(
        name="chroma",
        config="Chroma",
        unet={
            **_FLUX,
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 128,
            "hidden_dim": 64,
            "n_layers": 2,
        },
        latent=(16, 8, 8),
        text={"cross_attn": (7, 24)},
    ),
    Tiny(
        name="qwen_image",
        config="QwenImage",
        unet={
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (8, 12, 12),
        },
        latent=(16, 1, 8, 8),
        text={"cross_attn": (7, 24)},
    ),
    Tiny(
        name="z_image",
        config="ZImage",
        unet={
            **_LUMINA,
            "dim": 256,  # as wide as the time embedding
            "n_kv_heads": 2,
            "axes_dims": [32, 48, 48],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 8.0 / 3.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        latent=(16, 8, 8),
        text={"cross_attn": (7, 24)},
    ),
    Tiny(
        name="lumina2",
        config="Lumina2",
        unet={**_LUMINA, "n_kv_heads": 1, "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0},
        latent=(16, 8, 8),
        text={"cross_attn": (7, 24), "attention_mask": torch.ones(1, 7, dtype=torch.long)},
    ),
    Tiny(
        name="wan21_image",
        config="WAN21_T2V",
        unet=_WAN,
        latent=(16, 1, 4, 4),
        text={"cross_attn": (7, 4096)},
        from_file=True,
    ),
    Tiny(
        name="wan21_video",
        config="WAN21_T2V",
        unet=_WAN,
        latent=(16, 3, 4, 4),
        text={"cross_attn": (7, 4096)},
        from_file=True,
    ),
    Tiny(
        name="wan22_5b",
        config="WAN22_T2V",
        unet={**_WAN, "in_dim": 48, "out_dim": 48},
        latent=(48, 2, 4, 4),
        text={"cross_attn": (7, 4096)},
        from_file=True,
    ),
    Tiny(
        name="aura_flow",
        config="AuraFlow",
        unet={
            "dim": 64,
            "n_layers": 2,
            "n_double_layers": 1,
            "n_heads": 2,
            "global_conddim": 64,
            "cond_seq_dim": 24,
            "max_seq": 64,
        },
        latent=(4, 8, 8),
        text={"cross_attn": (7, 24)},
    ),
    Tiny(
        name="pixart",
        config="PixArtSigma",
        unet={
            "image_model": "pixart_sigma",
            "num_heads": 2,
            "patch_size": 2,
            "hidden_size": 64,
            "in_channels": 4,
            "depth": 2,
            "caption_channels": 24,
            "model_max_length": 7,
            "input_size": 8,
            "pe_interpolation": 1,
            "micro_condition": False,
        },
        latent=(4, 34, 34),  # the least that its positions can be scaled for
        text={"cross_attn": (7, 24)},
    ),
    Tiny(
        name="hidream",
        config="HiDream",
        unet={
            "image_model": "hidream",
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "caption_channels": [24, 24],
            "text_emb_dim": 16,
            "axes_dims_rope": (16, 8, 8),
            "max_resolution": (16, 16),
            "llama_layers": [0, 1, 1],
        },
        latent=(16, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (16,), "conditioning_llama3": (2, 5, 24)},
    ),
    Tiny(
        name="anima",
        config="Anima",
        unet={"image_model": "anima", **_COSMOS, "crossattn_emb_channels": 24},
        latent=(16, 1, 8, 8),
        text={
            "cross_attn": (7, 24),
            "t5xxl_ids": torch.arange(5),
            "t5xxl_weights": torch.ones(5),
        },
    ),
    Tiny(
        name="cosmos_predict2",
        config="CosmosT2IPredict2",
        unet={"image_model": "cosmos_predict2", **_COSMOS, "crossattn_emb_channels": 24},
        latent=(16, 1, 8, 8),
        text={"cross_attn": (7, 24)},
    ),
    Tiny(
        name="krea2",
        config="Krea2",
        unet={
            "image_model": "krea2",
            "features": 64,
            "tdim": 32,
            "txtdim": 32,
            "heads": 2,
            "kvheads": 1,
            "layers": 2,
            "txtlayers": 2,
            "txtheads": 2,
            "txtkvheads": 2,
        },
        latent=(16, 8, 8),
        text={"cross_attn": (7, 64)},
    ),
    Tiny(
        name="hunyuan_video",
        config="HunyuanVideo",
        unet={
            **{k: v for k, v in _FLUX.items() if k != "txt_ids_dims"},
            "image_model": "hunyuan_video",
            "guidance_embed": True,
            "vec_in_dim": 768,
            "patch_size": [1, 2, 2],
            "theta": 256,
            "byt5": False,
            "meanflow": False,
            "use_cond_type_embedding": False,
            "vision_in_dim": None,
            "meanflow_sum": False,
        },
        latent=(16, 2, 8, 8),
        text={"cross_attn": (7, 24), "pooled_output": (768,)},
    ),
    Tiny(
        name="ltxv",
        config="LTXV",
        unet={
            "image_model": "ltxv",
            "in_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "cross_attention_dim": 64,
            "caption_channels": 24,
        },
        latent=(16, 2, 4, 4),
        text={"cross_attn": (7, 24), "attention_mask": torch.ones(1, 7, dtype=torch.long)},
    ),
)


def _sdxl_beside(name: str, **markers: Tensor) -> Tiny:
    return Tiny(
        name=name, config="SDXL", latent=(4, 8, 12), text={"cross_attn": (7, 48), "pooled_output": (40,)},
        unet={
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64,
            "num_res_blocks": [1, 1], "channel_mult": [1, 2],  # head size 64 is in the config class
            "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False,
            "transformer_depth": [0, 2], "transformer_depth_middle": 2,
            "transformer_depth_output": [0, 0, 2, 2], "context_dim": 48,
            "num_classes": "sequential", "adm_in_channels": 40 + 6 * 256,
        },  # not from a file: the loader knows SDXL by its full depth
        markers=markers,
    )  # fmt: skip


def _sd3_beside(name: str, **changes: Any) -> Tiny:
    return Tiny(
        name=name, config="SD3", latent=(16, 8, 12), text={"cross_attn": (7, 48), "pooled_output": (40,)},
        unet={
            "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 2, "input_size": None,
            "adm_in_channels": 40, "num_patches": 256, "pos_embed_max_size": 16,
            "pos_embed_scaling_factor": None,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128},
            },
            **changes,
        },
        from_file=True,
    )  # fmt: skip


_BESIDE = (
    Tiny(
        name="sd15", config="SD15", latent=(4, 8, 12), text={"cross_attn": (7, 768)}, from_file=True,
        unet={
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
            "num_res_blocks": [1, 1], "channel_mult": [1, 1], "num_heads": 8, "use_spatial_transformer": True,
            "use_linear_in_transformer": False, "legacy": False, "transformer_depth": [1, 1],
            "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1], "context_dim": 768,
        },
    ),
    _sdxl_beside("sdxl"),
    _sdxl_beside("sdxl_v", v_pred=torch.tensor([])),
    _sd3_beside("sd3"),
    _sd3_beside("sd35_medium", qk_norm="rms", x_block_self_attn_layers=[0]),
    Tiny(
        name="flux", config="Flux", latent=(16, 8, 12), from_file=True,
        text={"cross_attn": (7, 48), "pooled_output": (40,)},
        unet={
            "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 40,
            "context_in_dim": 48, "hidden_size": 256, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2,
            "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
            "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
        },
    ),
    Tiny(
        name="flux2", config="Flux2", latent=(128, 4, 6), text={"cross_attn": (7, 48)}, from_file=True,
        unet={
            "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None,
            "context_in_dim": 48, "hidden_size": 256, "mlp_ratio": 3.0, "num_heads": 2, "depth": 2,
            "depth_single_blocks": 2, "axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1,
            "qkv_bias": False, "guidance_embed": True, "txt_ids_dims": [3], "global_modulation": True,
            "mlp_silu_act": True, "ops_bias": False,
        },
    ),
    Tiny(
        name="chroma", config="Chroma", latent=(16, 8, 12), text={"cross_attn": (7, 48)},
        unet={
            "image_model": "chroma", "in_channels": 64, "out_channels": 64, "vec_in_dim": None,
            "context_in_dim": 48, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 2,
            "depth": 19, "depth_single_blocks": 38,  # ComfyUI has their 344 modulations written in
            "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "txt_ids_dims": [],
            "in_dim": 64, "out_dim": 64, "hidden_dim": 96, "n_layers": 2,
        },  # not from a file: the loader has Chroma's width written in
    ),
    Tiny(
        name="qwen_image", config="QwenImage", latent=(16, 1, 8, 12), text={"cross_attn": (7, 48)},
        unet={
            "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2,
            "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 48,
            "axes_dims_rope": (8, 12, 12),
        },  # not from a file: the loader takes Qwen-Image's width from ComfyUI's defaults
    ),
    Tiny(
        name="z_image", config="ZImage", latent=(16, 8, 12), text={"cross_attn": (7, 48)},
        unet={
            "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 1152, "cap_feat_dim": 48,
            "n_layers": 2, "n_refiner_layers": 1, "n_heads": 9, "n_kv_heads": 9, "qk_norm": True,
            "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
            "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },  # not from a file: the loader knows Z-Image by its width
    ),
    *(
        Tiny(
            name=f"wan21_{frames}_latent_frames", config="WAN21_T2V", latent=(16, frames, 8, 12),
            text={"cross_attn": (7, 4096)}, from_file=True,
            unet={
                "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "out_dim": 16, "num_heads": 1,
                "ffn_dim": 192, "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 256, "in_dim": 16,
                "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
            },
        )
        for frames in (1, 3)
    ),
)  # fmt: skip

BESIDE_DIFFUSERS = {row.name: row for row in _BESIDE}
"""Sizes that diffusers' networks and converters take too: tests/parity has their half."""
