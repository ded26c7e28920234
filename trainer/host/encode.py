"""Pictures and clips to latents, by the VAE of the graph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ModelError
from .model import model_family

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE


class HostLatentEncoder:
    """The engine's `LatentEncoder`."""

    def __init__(self, vae: VAE, patcher: ModelPatcher) -> None:
        self.vae = vae
        self.model = patcher.model
        check_vae(vae, patcher)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        latent = self.vae.encode(pixels if pixels.ndim == 4 else pixels.unsqueeze(0))
        latent = self.model.process_latent_in(latent.float())
        return latent[0].to("cpu", torch.float32, copy=True)


def check_vae(vae: VAE, patcher: ModelPatcher) -> None:
    have, want = vae.latent_channels, patcher.model.latent_format.latent_channels
    if have != want:
        raise ModelError(
            f"the VAE makes latents of {have} channels and the model needs {want};"
            " connect the VAE that belongs to this model"
        )


def clip_step(vae: VAE, patcher: ModelPatcher) -> int:
    """s of the 1 + k s frames that VAE and network take; 0 where clips cannot be trained."""
    stills_only = model_family(patcher).fps is None or patcher.model.latent_format.latent_dimensions != 3
    step = vae.temporal_compression_decode()
    if stills_only or not step or vae.latent_dim != 3 or vae.not_video:
        return 0
    latents, frames = vae.downscale_ratio[0], vae.upscale_ratio[0]
    regular = all(frames(latents(n)) == n for n in (1, 1 + step, 1 + 8 * step))
    return step if regular and step > 1 else 0


def pixel_step(vae: VAE, patcher: ModelPatcher) -> int:
    """What a picture's sides must be multiples of, for the VAE and the network."""
    patch = patcher.model.model_config.unet_config.get("patch_size", 1)
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    return math.lcm(64, int(vae.spacial_compression_encode()) * int(patch or 1))
