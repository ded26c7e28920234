"""Pictures to latents, by the VAE of the graph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ModelError
from ..ports import ControlPictures
from .references import ControlEncoder, HostControls

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE


class HostLatentEncoder:
    """The engine's `LatentEncoder`."""

    def __init__(self, vae: VAE, patcher: ModelPatcher, clip: CLIP | None = None) -> None:
        """clip: that encodes the captions; some see the control pictures."""
        self.vae = vae
        self.model = patcher.model
        check_vae(vae, patcher)
        self._controls = ControlEncoder(patcher, vae, clip)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        latent = self.vae.encode(pixels.unsqueeze(0))
        latent = self.model.process_latent_in(latent.float())
        return latent[0].to("cpu", torch.float32, copy=True)

    def controls(self, pictures: ControlPictures) -> HostControls | None:
        return self._controls(pictures)


def check_vae(vae: VAE, patcher: ModelPatcher) -> None:
    have, want = vae.latent_channels, patcher.model.latent_format.latent_channels
    if have != want:
        raise ModelError(
            f"the VAE makes latents of {have} channels and the model needs {want};"
            " connect the VAE that belongs to this model"
        )


def pixel_step(vae: VAE, patcher: ModelPatcher) -> int:
    """What a picture's sides must be multiples of, for the VAE and the network."""
    patch = patcher.model.model_config.unet_config.get("patch_size", 1)
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    return math.lcm(64, int(vae.spacial_compression_encode()) * int(patch or 1))
