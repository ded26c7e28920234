"""Pictures and clips to latents, by the VAE of the graph."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import comfy.model_management as mm
import torch
from torch import Tensor

from ..data.store import Entry
from ..errors import ModelError
from ..ports import ControlPictures
from . import kept_conditions
from .model import model_family, patch_side
from .references import UNCHOSEN, Choices, ControlEncoder, HostControls

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

MOST = 8
"""Pictures that go through the VAE at once."""


class HostLatentEncoder:
    """The engine's `LatentEncoder`."""

    def __init__(
        self,
        vae: VAE,
        patcher: ModelPatcher,
        clip: CLIP | None = None,
        choices: Choices = UNCHOSEN,
        *,
        identity: str = "",
    ) -> None:
        """clip: that encodes the captions; some see the control pictures. identity:
        `identity.latents_identity`; "" is like no other encoder's."""
        self.identity = identity or uuid.uuid4().hex
        self.vae = vae
        self.model = patcher.model
        check_vae(vae, patcher)
        self._controls = ControlEncoder(patcher, vae, clip, choices)
        self.takes_controls = self._controls.takes_pictures
        self.control_kind = self._controls.kind
        self.takes_masks = self._controls.way.masks

    def at_once(self, pixels: Tensor) -> int:
        """As many as fit into a half of what is free, MOST at most; 1 on the CPU, where little is gained and
        several threads give other last bits, and for a VAE of videos, which takes pictures for frames."""
        vae = self.vae
        if mm.is_device_cpu(vae.device) or vae.latent_dim != 2 or pixels.ndim != 3:
            return 1
        height, width, _ = pixels.shape
        need = max(1, int(vae.memory_used_encode((1, 3, height, width), vae.vae_dtype)))
        return min(MOST, max(1, int(mm.get_free_memory(vae.device)) // 2 // need))

    @torch.no_grad()
    def encode(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        batch = torch.stack([*pixels])
        if batch.ndim == 5:
            (batch,) = batch  # ComfyUI takes frames where pictures of a batch would be
        latents = self.model.process_latent_in(self.vae.encode(batch).float())
        return [latent.to("cpu", torch.float32, copy=True) for latent in latents]

    def controls(self, pictures: ControlPictures) -> HostControls | None:
        return self._controls(pictures)

    def pack_controls(self, controls: HostControls | None) -> Entry:
        entry = kept_conditions.pack_value(dict(controls.values) if controls else None)
        if entry is None:
            name = type(self.model).__name__
            raise ModelError(
                f"{name}: what it is given of control pictures cannot be kept; train without control pictures"
            )
        return entry

    def unpack_controls(self, entry: Entry, pictures: ControlPictures) -> HostControls | None:
        values = kept_conditions.unpack_value(entry)
        return None if values is None else self._controls.with_values(values, pictures)


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
    """What a picture's sides must be multiples of, for the VAE and the network: a patch, or what a UNet
    halves to."""
    config = patcher.model.model_config.unet_config
    halved = 2 ** (len(config.get("channel_mult") or [1]) - 1)
    return int(vae.spacial_compression_encode()) * (patch_side(patcher) or 1) * halved
