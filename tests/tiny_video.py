"""Video models small enough for a CPU: ComfyUI's own networks, VAEs and sampler, with few weights.

The VAEs go through ComfyUI's own loader, which gives them their steps in time and space. It reads the sizes
of Wan's from the file and those of LTX-Video's from its metadata; HunyuanVideo's are fixed there, and made
smaller on the way.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.wan import vae2_2
from comfy.ldm.wan.vae import WanVAE
from torch import nn

from .tiny_models import CPU, TINY, FakeClip, build, randomise
from .tiny_rows import Tiny


@dataclass(frozen=True)
class Video:
    """What of a family is its own."""

    row: Tiny
    step: int
    """Of the VAE in time."""
    fps: int
    """The model's own."""


VIDEO = {
    "wan": Video(TINY["wan21_video"], 4, 16),
    "hunyuan": Video(TINY["hunyuan_video"], 4, 24),
    "ltx": Video(replace(TINY["ltxv"], unet={**TINY["ltxv"].unet, "in_channels": 128}), 8, 25),
}


_WAN = TINY["wan21_video"]
_HUNYUAN = TINY["hunyuan_video"]


def _wan_i2v(**changes: Any) -> Tiny:
    return replace(_WAN, unet={**_WAN.unet, "in_dim": 36, **changes})


STARTS = {
    "wan 2.1 i2v": Video(replace(_wan_i2v(model_type="i2v"), config="WAN21_I2V"), 4, 16),
    "wan 2.2 i2v": Video(_wan_i2v(), 4, 16),
    "wan 2.2 5b": Video(TINY["wan22_5b"], 4, 24),
    "hunyuan": VIDEO["hunyuan"],
    "hunyuan i2v": Video(
        replace(_HUNYUAN, config="HunyuanVideoI2V", unet={**_HUNYUAN.unet, "in_channels": 33}), 4, 24
    ),
    "skyreels i2v": Video(
        replace(_HUNYUAN, config="HunyuanVideoSkyreelsI2V", unet={**_HUNYUAN.unet, "in_channels": 32}), 4, 24
    ),
    "hunyuan 1.5": Video(
        replace(
            _HUNYUAN, config="HunyuanVideo15", latent=(32, 2, 4, 4),
            unet={
                **_HUNYUAN.unet, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1],
                "vec_in_dim": None, "vision_in_dim": 1152, "meanflow_sum": True,
                "use_cond_type_embedding": True, "guidance_embed": False,
            },
        ), 4, 24,
    ),
    "ltx": VIDEO["ltx"],
}  # fmt: skip
"""Models that are given a start picture, or can be."""
ALL = VIDEO | STARTS


def model(name: str) -> comfy.model_patcher.ModelPatcher:
    return build(ALL[name].row)


def vae(name: str) -> comfy.sd.VAE:
    """As VAELoader gives it, with weights drawn from a seed."""
    with torch.inference_mode(False):
        made = _VAES.get(name, _VAES[name.split()[0]])()
    made.first_stage_model.requires_grad_(False)
    return made


def _weights(net: nn.Module) -> dict[str, torch.Tensor]:
    randomise(net, 0)
    for name, statistic in net.named_buffers():  # LTX-Video's mean and deviation of each channel
        statistic.fill_("std" in name)
    return net.state_dict()


def _wan() -> comfy.sd.VAE:
    sizes: dict[str, Any] = {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
    return comfy.sd.VAE(sd=_weights(WanVAE(dim=8, z_dim=16, **sizes)))


def _wan_5b() -> comfy.sd.VAE:
    whole = vae2_2.WanVAE

    def smaller(**sizes: Any) -> nn.Module:
        return whole(**sizes | {"dim": 8, "dec_dim": 8})

    weights = _weights(smaller(z_dim=48, temperal_downsample=[False, True, True]))
    with patch.object(vae2_2, "WanVAE", smaller):
        return comfy.sd.VAE(sd=weights)


def _hunyuan() -> comfy.sd.VAE:
    small = {"z_channels": 16, "ch": 32, "num_res_blocks": 1}

    def smaller(ddconfig: dict[str, Any], embed_dim: int) -> AutoencoderKL:
        return AutoencoderKL(ddconfig=ddconfig | small, embed_dim=embed_dim)

    whole: dict[str, Any] = {
        "double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch_mult": [1, 2, 4, 4],
        "attn_resolutions": [], "dropout": 0.0, "conv3d": True, "time_compress": 4,
    }  # fmt: skip
    weights = _weights(smaller(whole, 16))
    with patch.object(comfy.sd, "AutoencoderKL", smaller):
        return comfy.sd.VAE(sd=weights)


def _ltx() -> comfy.sd.VAE:
    blocks = [["res_x", 1], *[["compress_all", 1], ["res_x", 1]] * 3]
    config = {
        "dims": 3, "latent_channels": 128, "blocks": blocks, "norm_layer": "pixel_norm", "patch_size": 4,
        "latent_log_var": "uniform", "encoder_base_channels": 16, "decoder_base_channels": 16,
    }  # fmt: skip
    weights = _weights(VideoVAE(config=config))
    return comfy.sd.VAE(sd=weights, metadata={"config": json.dumps({"vae": config})})


def _hunyuan_15() -> comfy.sd.VAE:
    whole = comfy.sd.AutoencodingEngine

    def smaller(**configs: Any) -> nn.Module:
        for half in ("encoder_config", "decoder_config"):
            configs[half]["params"] |= {"block_out_channels": [8, 16, 32, 64, 64], "num_res_blocks": 1}
        return whole(**configs)

    sizes: dict[str, Any] = {
        "in_channels": 3, "out_channels": 3, "z_channels": 32, "ffactor_spatial": 16, "ffactor_temporal": 4,
        "downsample_match_channel": True, "upsample_match_channel": True,
    }  # fmt: skip
    parts = {
        f"{half.lower()}_config": {
            "target": f"comfy.ldm.hunyuan_video.vae_refiner.{half}",
            "params": {**sizes},
        }
        for half in ("Encoder", "Decoder")
    }
    regularizer = {"target": "comfy.ldm.models.autoencoder.EmptyRegularizer"}
    weights = _weights(smaller(regularizer_config=regularizer, **parts))
    with patch.object(comfy.sd, "AutoencodingEngine", smaller):
        return comfy.sd.VAE(sd=weights)


_VAES = {
    "hunyuan 1.5": _hunyuan_15,
    "wan": _wan,
    "wan 2.2 5b": _wan_5b,
    "hunyuan": _hunyuan,
    "skyreels": _hunyuan,
    "ltx": _ltx,
}


class VideoClip(FakeClip):
    """A text encoder that can be loaded and patched, and whose embeddings follow from the text alone."""

    layer_idx = None
    use_clip_schedule = False

    def __init__(self, name: str) -> None:
        super().__init__(ALL[name].row)
        self.name = name
        self.cond_stage_model = nn.Linear(1, 1)
        self.tokenizer, self.tokenizer_options = object(), {}
        self.patcher = comfy.model_patcher.ModelPatcher(self.cond_stage_model, CPU, CPU)

    def tokenize(self, text: str, **options: Any) -> str:
        """What else is given becomes a part of the text."""
        told = [f"{k}={v.double().sum()}" if torch.is_tensor(v) else f"{k}={v}" for k, v in options.items()]
        return " ".join([text, *told]) if told else text

    def clone(self) -> VideoClip:
        return copy.copy(self)

    def add_patches(self, patches: dict[str, Any], strength: float) -> list[str]:
        return []
