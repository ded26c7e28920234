"""The networks: real sizes, generated weights, in ComfyUI's classes and in diffusers'.

Imports ComfyUI, so `dev.host.import_comfyui` has to come first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.supported_models
import diffusers
import diffusers.loaders.single_file_utils as single_file
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..weights import FULL_UNET, TINY_UNET

PREFIX = "model.diffusion_model."

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False,
    "use_spatial_transformer": True, "transformer_depth_middle": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Model:
    config: str
    """Class in `comfy.supported_models`."""
    sizes: dict[str, Any]
    """Arguments of ComfyUI's network."""
    latent_channels: int = 4
    text: tuple[int, int]
    """Tokens, width."""
    pooled: int = 0
    """Width of the pooled text embedding; 0: none."""
    diffusers_class: type[nn.Module]
    diffusers_sizes: dict[str, Any]
    convert: Callable[..., dict[str, Tensor]]
    """ComfyUI's weights to diffusers'."""
    attention: str | list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    """Attention layers in diffusers, as peft's target_modules."""

    def write(self, path: Path) -> Path:
        """The weights as a file, in half precision, that ComfyUI's Load Diffusion Model reads."""
        if path.exists():
            return path
        config = getattr(comfy.supported_models, self.config)(dict(self.sizes))
        config.set_inference_dtype(torch.float32, None)
        shapes = config.get_model({}, "", device="meta").diffusion_model.state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            save_file(_generated({k: v.shape for k, v in shapes.items()}), part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def in_diffusers(self, path: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
        with torch.device("meta"):
            net = self.diffusers_class(**self.diffusers_sizes)
        weights = {k: v.to(device, dtype) for k, v in load_file(path).items()}
        net.load_state_dict(self.convert(weights, config=dict(net.config)), strict=True, assign=True)
        return net.to(device).requires_grad_(False)


def _generated(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """N(0, 1/fan_in) keeps activations at their size from layer to layer; norms are the identity."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            w = torch.randn(shape, generator=g, device=device) / shape[1:].numel() ** 0.5
        else:
            w = torch.ones(shape) if name.endswith(("weight", "scale")) else torch.zeros(shape)
        # fp16, in which such files are; bf16 where ComfyUI would compute in the file's precision.
        weights[PREFIX + name] = w.to("cpu", torch.bfloat16 if device == "cuda" else torch.float16)
    return weights


def _flux_to_diffusers(weights: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    # ComfyUI renames the norms when it loads a file; diffusers expects Flux's own names.
    names = {k: re.sub(r"(query_norm|key_norm)\.weight$", r"\1.scale", k) for k in weights}
    plain = {name: weights[k] for k, name in names.items()}
    return single_file.convert_flux_transformer_checkpoint_to_diffusers(plain, **options)


MODELS = {
    "tiny": Model(
        config="SD15", text=(77, 768),
        sizes={
            **UNET, **TINY_UNET, "num_heads": 8, "context_dim": 768, "use_linear_in_transformer": False,
        },
        diffusers_class=diffusers.UNet2DConditionModel,
        diffusers_sizes={
            "block_out_channels": (320, 320), "layers_per_block": 1, "attention_head_dim": 8,
            "cross_attention_dim": 768, "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        },
        convert=single_file.convert_ldm_unet_checkpoint,
    ),
    "sd15": Model(
        config="SD15", text=(77, 768),
        sizes={
            **UNET, **FULL_UNET, "num_heads": 8, "context_dim": 768, "use_linear_in_transformer": False,
        },
        diffusers_class=diffusers.UNet2DConditionModel,
        diffusers_sizes={"attention_head_dim": 8, "cross_attention_dim": 768},
        convert=single_file.convert_ldm_unet_checkpoint,
    ),
    "sdxl": Model(
        config="SDXL", text=(77, 2048), pooled=1280,
        sizes={
            **UNET, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "context_dim": 2048,
            "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816,
            "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        },
        diffusers_class=diffusers.UNet2DConditionModel,
        diffusers_sizes={
            "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        },
        convert=single_file.convert_ldm_unet_checkpoint,
    ),
    "flux": Model(
        config="Flux", text=(512, 4096), pooled=768, latent_channels=16,
        sizes={
            "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
            "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
            "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
            "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
        },
        diffusers_class=diffusers.FluxTransformer2DModel,
        diffusers_sizes={"guidance_embeds": True},
        convert=_flux_to_diffusers,
        # Single blocks: ComfyUI has attention and feed-forward in two fused layers, both adapted.
        attention=r".*attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
        r"|single_transformer_blocks\.\d+\.(proj_mlp|proj_out)",
    ),
}  # fmt: skip
