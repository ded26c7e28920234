"""Trains the network from nothing: ComfyUI's SD3 MMDiT of depth 4, by flow matching in latents of 16x16.

    x_σ = (1 - σ) x₀ + σ ε,   network(x_σ, 1000 σ, text) ≈ ε - x₀

That is ComfyUI's objective for SD3; its sampler then gives x₀ = x_σ - σ · network.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from .data import TrainingData
from .fitting import fit
from .muon import Muon
from .text import WIDTH

DEPTH = 4

BATCH = 32
DROPPED = 0.1
"""Share of captions left out, so that guidance has something to go away from."""

SPREAD, SHIFT = 1.3, 2.0
"""σ is logit-normal, shifted towards noise: ComfyUI samples SD3 with a shift of 3, mostly there."""


def new_network() -> nn.Module:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    torch.manual_seed(0)
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 64 * DEPTH}}
    network = OpenAISignatureMMDITWrapper(
        input_size=None, patch_size=2, in_channels=16, depth=DEPTH, adm_in_channels=WIDTH, qk_norm="rms",
        context_embedder_config=embedder, dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0 if ".ln_" in name else 0.0)
            elif "adaLN_modulation" in name or name.startswith("final_layer."):
                weight.zero_()  # every block starts as the identity
            else:
                matrix = weight.flatten(1)
                nn.init.normal_(weight, std=math.sqrt(2 / sum(matrix.shape)))
    return network


def train_base(folder: Path, minutes: float, data: TrainingData, compiled: bool = False) -> nn.Module:
    """With `compiled`, which needs a C++ compiler, a step takes about a third less time."""
    network = new_network()
    run = torch.compile(network) if compiled else network
    empty = len(data.contexts) - 1

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(0, len(data.latents), (BATCH,), generator=generator)
        texts = data.texts[chosen]
        texts = torch.where(torch.rand(BATCH, generator=generator) < DROPPED, empty, texts)
        clean = data.latents[chosen].float()
        noise = torch.randn(clean.shape, generator=generator)
        sigma = (SPREAD * torch.randn(BATCH, generator=generator) + math.log(SHIFT)).sigmoid()
        mix = sigma.view(-1, 1, 1, 1)
        noised = (1 - mix) * clean + mix * noise
        with torch.autocast("cpu", torch.bfloat16):
            context, pooled = data.contexts[texts].float(), data.pooled[texts].float()
            made = run(noised, 1000 * sigma, context=context, y=pooled)
        return (made.float() - (noise - clean)).square().mean()

    return fit(
        network,
        loss_of,
        optimizers(network),
        folder=folder,
        name="base",
        minutes=minutes,
        warmup=0.01,
        decay_from=0.2,
    )


def optimizers(network: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    inner, outer = [], []
    for name, weight in network.named_parameters():
        is_inner = name.startswith("joint_blocks.") and weight.ndim == 2 and "adaLN" not in name
        (inner if is_inner else outer).append(weight)
    return [
        Muon(inner, lr=2e-3, weight_decay=0.01),
        torch.optim.AdamW(outer, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99)),
    ]
