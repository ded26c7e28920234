"""diffusers' half of each row that it can hold too: its network, its converter, its way to call it."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import exp
from types import FunctionType
from typing import Any

import diffusers
import diffusers.loaders.single_file_utils as single_file
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from torch import Tensor, nn

from ..tiny_rows import BESIDE_DIFFUSERS
from .case import GUIDANCE, Case, Numbers, Prediction

Weights = dict[str, Tensor]
Convert = Callable[..., Weights]


def plain_names(weights: Weights, **_: Any) -> Weights:
    return {k.removeprefix("model.diffusion_model."): v for k, v in weights.items()}


def loading(cls: type[nn.Module], convert: Convert, **sizes: Any) -> Callable[[Weights], nn.Module]:
    """ComfyUI's weights → `cls(**sizes)` with the same weights, by diffusers' converter."""

    def load(weights: Weights) -> nn.Module:
        net = cls(**sizes)
        net.load_state_dict(convert(weights, config=dict(net.config)), strict=True)
        return net

    return load


def at_width(convert: Convert, width: int) -> Convert:
    """diffusers' converters of Flux and Chroma split fused layers at Flux's width, 3072; here at `width`."""
    code = convert.__code__
    assert 3072 in code.co_consts
    constants = tuple(width if c == 3072 else c for c in code.co_consts)
    return FunctionType(code.replace(co_consts=constants), convert.__globals__)


def hosts_epsilon(load: Callable[[Weights], nn.Module]) -> Callable[[Weights], nn.Module]:
    """diffusers' norms of queries and keys with ComfyUI's epsilon.

    ComfyUI gives them none, so that torch takes 1.2e-7 (fp32); diffusers has 1e-6. It shows where queries are
    small: in Flux.2, where ComfyUI pads the text with zeros. There gradients differ by 9e-5, and by 1e-6 with
    the same epsilon.
    """

    def with_epsilon(weights: Weights) -> nn.Module:
        net = load(weights)
        for m in net.modules():
            if isinstance(m, nn.RMSNorm):
                m.eps = None
        return net

    return with_epsilon


def published_norms(convert: Convert) -> Convert:
    """For converters that expect Flux's own names of norms, which ComfyUI changes when it loads a file."""
    norm = re.compile(r"(norm|norms\.\d+)\.weight$")
    return lambda weights, **kwargs: convert(
        {norm.sub(r"\1.scale", k): v for k, v in weights.items()}, **kwargs
    )


def unprefixed(convert: Convert) -> Convert:
    """For converters that expect the network's own names."""
    return lambda weights, **kwargs: convert(plain_names(weights), **kwargs)


# Calls: diffusers' network as diffusers' training script for the family calls it.


def call_unet(net: nn.Module, n: Numbers) -> Tensor:
    return net(n.x_t, n.t, n.text).sample


def call_unet_sdxl(net: nn.Module, n: Numbers) -> Tensor:
    height, width = (8 * side for side in n.x_t.shape[-2:])
    size = torch.tensor([height, width, 0, 0, height, width])  # original size, crop, target size
    added = {"text_embeds": n.pooled, "time_ids": size.repeat(len(n.t), 1)}
    return net(n.x_t, n.t, n.text, added_cond_kwargs=added).sample


def call_sd3(net: nn.Module, n: Numbers) -> Tensor:
    return net(n.x_t, timestep=n.t, encoder_hidden_states=n.text, pooled_projections=n.pooled)[0]


def call_flux(net: nn.Module, n: Numbers) -> Tensor:
    return call_chroma(net, n, pooled_projections=n.pooled, guidance=torch.full_like(n.t, GUIDANCE))


def call_chroma(net: nn.Module, n: Numbers, **more: Any) -> Tensor:
    b, c, h, w = n.x_t.shape
    out = net(
        FluxPipeline._pack_latents(n.x_t, b, c, h, w),
        timestep=n.t / 1000,
        encoder_hidden_states=n.text,
        txt_ids=torch.zeros(n.text.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, n.x_t.device, n.x_t.dtype),
        **more,
    )[0]
    return FluxPipeline._unpack_latents(out, height=8 * h, width=8 * w, vae_scale_factor=8)


def call_flux2(net: nn.Module, n: Numbers) -> Tensor:
    # ComfyUI pads the text with zeros on the left to 512 tokens; both sides see that text.
    text = nn.functional.pad(n.text, (0, 0, 512 - n.text.shape[1], 0))
    out = net(
        Flux2Pipeline._pack_latents(n.x_t),
        timestep=n.t / 1000,
        guidance=torch.full_like(n.t, GUIDANCE),
        encoder_hidden_states=text,
        txt_ids=Flux2Pipeline._prepare_text_ids(text),
        img_ids=Flux2Pipeline._prepare_latent_ids(n.x_t),
    )[0]
    return out.transpose(1, 2).reshape(n.x_t.shape)


def call_qwen_image(net: nn.Module, n: Numbers) -> Tensor:
    b, c, f, h, w = n.x_t.shape
    out = net(
        QwenImagePipeline._pack_latents(n.x_t.transpose(1, 2), b, c, h, w),
        timestep=n.t / 1000,
        encoder_hidden_states=n.text,
        encoder_hidden_states_mask=torch.ones(n.text.shape[:2], dtype=torch.long),
        img_shapes=[(f, h // 2, w // 2)] * b,
    )[0]
    return QwenImagePipeline._unpack_latents(out, 8 * h, 8 * w, vae_scale_factor=8)


def call_z_image(net: nn.Module, n: Numbers) -> Tensor:
    images = [x.unsqueeze(1) for x in n.x_t]
    out = net(images, (1000 - n.t) / 1000, list(n.text), return_dict=False)[0]
    return -torch.stack(out).squeeze(2)


def call_wan(net: nn.Module, n: Numbers) -> Tensor:
    return net(n.x_t, n.t, n.text)[0]


def sdxl(name: str, prediction: Prediction) -> Case:
    return Case(
        row=BESIDE_DIFFUSERS[name], prediction=prediction,
        theirs=loading(
            diffusers.UNet2DConditionModel, single_file.convert_ldm_unet_checkpoint,
            block_out_channels=(64, 128), layers_per_block=1, attention_head_dim=(1, 2),
            cross_attention_dim=48,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=2,
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=40 + 6 * 256,
        ),
        predict=call_unet_sdxl,
    )  # fmt: skip


def sd3(name: str, **sizes: Any) -> Case:
    return Case(
        row=BESIDE_DIFFUSERS[name], prediction="flow", shift=3.0,
        theirs=loading(
            diffusers.SD3Transformer2DModel, single_file.convert_sd3_transformer_checkpoint_to_diffusers,
            sample_size=8, num_layers=2, attention_head_dim=64, num_attention_heads=2, joint_attention_dim=48,
            caption_projection_dim=128, pooled_projection_dim=40, pos_embed_max_size=16, **sizes,
        ),
        predict=call_sd3,
    )  # fmt: skip


CASES = (
    Case(
        row=BESIDE_DIFFUSERS["sd15"], prediction="eps",
        theirs=loading(
            diffusers.UNet2DConditionModel, single_file.convert_ldm_unet_checkpoint,
            block_out_channels=(320, 320), layers_per_block=1, attention_head_dim=8, cross_attention_dim=768,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        ),
        predict=call_unet,
    ),
    sdxl("sdxl", "eps"),
    sdxl("sdxl_v", "v"),
    sd3("sd3"),
    sd3("sd35_medium", qk_norm="rms_norm", dual_attention_layers=(0,)),
    Case(
        row=BESIDE_DIFFUSERS["flux"], prediction="flow", shift=exp(1.15),
        theirs=loading(
            diffusers.FluxTransformer2DModel,
            published_norms(at_width(single_file.convert_flux_transformer_checkpoint_to_diffusers, 256)),
            num_layers=2, num_single_layers=2, num_attention_heads=2, joint_attention_dim=48,
            pooled_projection_dim=40, guidance_embeds=True,
        ),
        predict=call_flux,
    ),
    Case(
        row=BESIDE_DIFFUSERS["flux2"], prediction="flow", shift=exp(2.02),
        theirs=hosts_epsilon(loading(
            diffusers.Flux2Transformer2DModel,
            unprefixed(single_file.convert_flux2_transformer_checkpoint_to_diffusers),
            num_layers=2, num_single_layers=2, num_attention_heads=2, joint_attention_dim=48,
        )),
        predict=call_flux2,
    ),
    Case(
        row=BESIDE_DIFFUSERS["chroma"], prediction="flow", shift=exp(1.15),
        theirs=loading(
            diffusers.ChromaTransformer2DModel,
            published_norms(at_width(single_file.convert_chroma_transformer_checkpoint_to_diffusers, 64)),
            num_layers=19, num_single_layers=38, attention_head_dim=32, num_attention_heads=2,
            joint_attention_dim=48, axes_dims_rope=(8, 12, 12), approximator_hidden_dim=96,
            approximator_layers=2,
        ),
        predict=call_chroma,
    ),
    Case(
        row=BESIDE_DIFFUSERS["qwen_image"], prediction="flow", shift=exp(1.15),
        theirs=loading(
            diffusers.QwenImageTransformer2DModel, plain_names,
            num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=48,
            axes_dims_rope=(8, 12, 12),
        ),
        predict=call_qwen_image, text_mask=True,
    ),
    Case(
        row=BESIDE_DIFFUSERS["z_image"], prediction="flow", shift=3.0,
        theirs=loading(
            diffusers.ZImageTransformer2DModel,
            single_file.convert_z_image_transformer_checkpoint_to_diffusers,
            dim=1152, n_layers=2, n_refiner_layers=1, n_heads=9, n_kv_heads=9, cap_feat_dim=48,
        ),
        predict=call_z_image, text_mask=True,
    ),
    *(
        Case(
            row=BESIDE_DIFFUSERS[f"wan21_{frames}_latent_frames"], prediction="flow", shift=8.0,
            theirs=loading(
                diffusers.WanTransformer3DModel, unprefixed(single_file.convert_wan_transformer_to_diffusers),
                num_layers=2, num_attention_heads=1, ffn_dim=192,
            ),
            predict=call_wan,
        )
        for frames in (1, 3)
    ),
)  # fmt: skip
