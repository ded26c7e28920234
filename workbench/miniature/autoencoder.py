"""Trains ComfyUI's TAESD, 16 channels, on the world: pictures [B, 3, 8h, 8w] in -1..1, latents [B, 16, h, w].

Its latents are those that the network sees: `vae_scale` and `vae_shift` undo what SD3's latent format does,
so that the encoder itself gives mean 0 and variance 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from . import world
from .canvas import any_colour
from .fitting import fit
from .muon import Muon

SD3_SCALE, SD3_SHIFT = 1.5305, 0.0609
NOISE = 0.1
"""Standard deviation of the noise on latents in training: a sampled latent is never exact."""


def new_autoencoder() -> nn.Module:
    from comfy.taesd.taesd import TAESD, Block

    torch.manual_seed(0)
    module = TAESD(latent_channels=16).requires_grad_(True)
    with torch.no_grad():
        module.vae_scale.fill_(SD3_SCALE).requires_grad_(False)
        module.vae_shift.fill_(SD3_SHIFT).requires_grad_(False)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    layer.bias.zero_()
        for layer in module.modules():
            if isinstance(layer, Block):  # each block starts as the identity
                layer.conv[4].weight.zero_()
        module.taesd_encoder[14].weight.mul_(0.5)
        module.taesd_decoder[19].weight.mul_(0.1)
        module.taesd_decoder[19].bias.fill_(0.5)
    return module.to(memory_format=torch.channels_last)


def practice_pictures(count: int, seed: int) -> Tensor:
    """[count, 3, 128, 128] uint8. A third of the bodies have stripes: an autoencoder is for any picture."""
    random = Random(f"autoencoder {seed}")
    pictures = np.empty((count, 128, 128, 3), np.uint8)
    for i in range(count):
        scene, colour = world.random_scene(random), None
        if random.random() < 0.33:
            colour, stripe = any_colour(random), any_colour(random)
            scene = replace(scene, stripe=stripe, face=random.choice([*world.FACES, "moustache"]))
        if random.random() < 0.15:
            scene = replace(scene, hat="wizard hat")
        pictures[i] = np.asarray(world.picture(scene, random, colour))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def as_floats(pictures: Tensor) -> Tensor:
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train_autoencoder(folder: Path, minutes: float, pictures: Tensor) -> nn.Module:
    module = new_autoencoder()
    encoder, decoder = module.taesd_encoder, module.taesd_decoder

    def loss_of(generator: torch.Generator) -> Tensor:
        whole = torch.rand((), generator=generator) < 0.25
        count = 4 if whole else 16
        chosen = pictures[torch.randint(0, len(pictures), (count,), generator=generator)]
        if not whole:  # a part in the middle, where faces and hands are
            y, x = (8 * torch.randint(1, 9, (2,), generator=generator)).tolist()
            chosen = chosen[:, :, y : y + 64, x : x + 64]
        target = (as_floats(chosen) + 1) / 2
        with torch.autocast("cpu", torch.bfloat16):
            latents = encoder(target).float()
            noise = torch.randn(latents.shape, generator=generator) * NOISE
            made = decoder(latents + noise).float()
        return (
            l1_loss(made, target)
            + 3 * (made - target).square().mean()  # a face is small, and missing it is a large error
            + l1_loss(made.diff(dim=2), target.diff(dim=2))
            + l1_loss(made.diff(dim=3), target.diff(dim=3))
            + 0.01 * _not_normal(latents)
        )

    weights = [weight for weight in module.parameters() if weight.requires_grad]
    inner = [weight for weight in weights if weight.shape[:2] == (64, 64)]
    outer = [weight for weight in weights if weight.shape[:2] != (64, 64)]
    optimizers = [Muon(inner, lr=2e-3), torch.optim.AdamW(outer, lr=1e-3)]
    return fit(
        module, loss_of, optimizers, folder=folder, name="autoencoder", minutes=minutes, decay_from=0.2
    )


def _not_normal(latents: Tensor) -> Tensor:
    """How far each channel is from mean 0 and variance 1, over batch and place."""
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return (mean.square() + std.clamp_min(1e-4).log().square()).mean()
