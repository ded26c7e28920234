"""The networks: real sizes, generated weights, in ComfyUI's classes and in diffusers'.

Imports ComfyUI, so `dev.host.import_comfyui` has to come first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.supported_models
import diffusers
import diffusers.loaders.single_file_utils as single_file
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from in_graph_lora.trainer.host import kernels

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
    frames: bool = False
    """Latents are [B, C, 1, H, W]."""
    text: tuple[int, int]
    """Tokens, width."""
    pooled: int = 0
    """Width of the pooled text embedding; 0: none."""
    vector: int = 0
    """Width of the vector that the network gets; 0: as `pooled`."""
    flow: bool = False
    guidance: bool = False
    diffusers_class: type[nn.Module]
    diffusers_sizes: dict[str, Any]
    convert: Callable[..., dict[str, Tensor]] | None
    """ComfyUI's weights to diffusers'. None: weights of its own, where diffusers knows one width only."""
    attention: str | list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    """Attention layers in diffusers, as peft's target_modules."""

    def latent(self, batch: int, pixels: int) -> tuple[int, ...]:
        side = pixels // 8
        return (batch, self.latent_channels, *([1] if self.frames else []), side, side)

    def given(self, drawn: Callable[..., Tensor], batch: int) -> dict[str, Any]:
        """What the network is given beside latent and time; drawn: a tensor of this shape."""
        more = {"context": drawn(batch, *self.text)}
        if self.pooled:
            more["y"] = drawn(batch, self.vector or self.pooled)
        if self.guidance:
            more["guidance"] = drawn(batch)
        return {**more, "transformer_options": {"optimized_attention_override": kernels.attention}}

    def empty(self, dtype: torch.dtype) -> Any:
        """ComfyUI's model, its network on the meta device."""
        config = getattr(comfy.supported_models, self.config)(dict(self.sizes))
        config.set_inference_dtype(dtype, None)
        return config.get_model({}, "", device="meta")

    def patcher(self, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
        """The model with generated weights in host memory, as a loader node gives it.

        They are drawn on the GPU where there is one: twenty billion numbers take minutes elsewhere.
        """
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        with torch.inference_mode():
            model = self.empty(dtype)
            net = model.diffusion_model
            drawn = generated(net, dtype)
            net.load_state_dict({k: v.to("cpu") for k, v in drawn}, assign=True)
            net.requires_grad_(False)
            kind = comfy.model_patcher.ModelPatcher
            patcher = (kind if disable_dynamic else comfy.model_patcher.CoreModelPatcher)(
                model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
            )
        patcher.cached_patcher_init = (self.patcher, ())  # by which core's trainer makes its copy
        return patcher

    def in_diffusers(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The same weights in diffusers' network."""
        with init_empty_weights():
            net = self.diffusers_class(**self.diffusers_sizes)
        drawn = dict(generated(self.empty(dtype).diffusion_model if self.convert else net, dtype))
        if self.convert:
            drawn = self.convert({PREFIX + k: v for k, v in drawn.items()}, config=dict(net.config))
        net.load_state_dict(drawn, strict=True, assign=True)
        return net.to(device).requires_grad_(False)


@lru_cache(maxsize=1)
def loaded(name: str) -> comfy.model_patcher.ModelPatcher:
    return MODELS[name].patcher()


@lru_cache(maxsize=1)
def loaded_in_diffusers(name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    return MODELS[name].in_diffusers(dtype, device)


def generated(net: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """N(0, 1/fan_in) keeps activations at their size from layer to layer; norms are the identity."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = torch.Generator(device).manual_seed(0)
    for name, empty in net.state_dict().items():
        if empty.ndim > 1:
            w = torch.randn(empty.shape, generator=g, device=device, dtype=dtype) / empty[0].numel() ** 0.5
        else:
            fill = torch.ones if name.endswith(("weight", "scale")) else torch.zeros
            w = fill(empty.shape, device=device, dtype=dtype)
        yield name, w


def forward_flops(name: str, batch: int, pixels: int) -> int:
    """Multiplications and additions of one pass through the network, counted on the meta device."""
    m, half = MODELS[name], torch.bfloat16
    net = m.empty(half).diffusion_model
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        drawn = partial(torch.empty, dtype=half)
        net(drawn(*m.latent(batch, pixels)), torch.empty(batch), **m.given(drawn, batch))
    return counter.get_total_flops()


def _plain_names(weights: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): w for name, w in weights.items()}


def _flux_to_diffusers(weights: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    # ComfyUI renames the norms when it loads a file; diffusers expects Flux's own names.
    names = {k: re.sub(r"(query_norm|key_norm)\.weight$", r"\1.scale", k) for k in weights}
    plain = {name: weights[k] for k, name in names.items()}
    return single_file.convert_flux_transformer_checkpoint_to_diffusers(plain, **options)


FLUX: dict[str, Any] = {
    "config": "Flux", "text": (512, 4096), "pooled": 768, "latent_channels": 16,
    "flow": True, "guidance": True,
    "sizes": {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
        "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
        "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
    },
    "diffusers_class": diffusers.FluxTransformer2DModel,
    "diffusers_sizes": {"guidance_embeds": True},
    "convert": _flux_to_diffusers,
    # Single blocks: ComfyUI has attention and feed-forward in two fused layers, both adapted.
    "attention": r".*attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|single_transformer_blocks\.\d+\.(proj_mlp|proj_out)",
}  # fmt: skip
QWEN_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]

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
        config="SDXL", text=(77, 2048), pooled=1280, vector=2816,
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
    "flux": Model(**FLUX),
    "tiny-flux": Model(
        **FLUX
        | {
            "text": (16, 4096),
            "sizes": {
                **FLUX["sizes"], "hidden_size": 256, "num_heads": 2, "depth": 1, "depth_single_blocks": 2,
            },
            "diffusers_sizes": {
                "guidance_embeds": True, "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2,
            },
            "convert": None,
        }
    ),
    "few-flux": Model(
        **FLUX
        | {
            "text": (64, 4096),
            "sizes": {
                **FLUX["sizes"], "hidden_size": 1536, "num_heads": 12, "depth": 2, "depth_single_blocks": 6,
            },
        }
    ),
    "qwen": Model(
        config="QwenImage", text=(256, 3584), latent_channels=16, flow=True, frames=True,
        sizes={"image_model": "qwen_image", "in_channels": 64, "num_layers": 60},
        diffusers_class=diffusers.QwenImageTransformer2DModel,
        diffusers_sizes={"num_layers": 60},
        convert=_plain_names,
        attention=QWEN_ATTENTION,
    ),
    "tiny-qwen": Model(
        config="QwenImage", text=(16, 96), latent_channels=16, flow=True, frames=True,
        sizes={
            "image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 2,
            "joint_attention_dim": 96,
        },
        diffusers_class=diffusers.QwenImageTransformer2DModel,
        diffusers_sizes={"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 96},
        convert=_plain_names,
        attention=QWEN_ATTENTION,
    ),
}  # fmt: skip
"""few-flux: blocks of half Flux's width, for what is measured of streaming on a CPU."""
