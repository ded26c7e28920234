"""Pictures from a model, by ComfyUI's own sampler, many prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.0, "euler", "simple"
"""What suits the base model."""


def load_checkpoint(path: Path) -> tuple[Any, Any, Any]:
    """(model, clip, vae), as CheckpointLoaderSimple gives them."""
    import comfy.sd

    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)
    return model, clip, vae


def conditioning(clip: Any, prompts: Sequence[str]) -> list[Any]:
    """One entry in ComfyUI's format whose tensors have one row a prompt."""
    encoded = {
        prompt: clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
        for prompt in dict.fromkeys(prompts)
    }
    contexts, pooled = zip(*(encoded[prompt] for prompt in prompts), strict=True)
    return [[torch.cat(contexts), {"pooled_output": torch.cat(pooled)}]]


@torch.inference_mode()
def sample(
    model: Any,
    clip: Any,
    vae: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = STEPS,
    cfg: float = CFG,
    sampler: str = SAMPLER,
    scheduler: str = SCHEDULER,
    batch: int = 25,
) -> Tensor:
    """One picture a prompt: [N, 3, 128, 128] in 0..1. The seed gives the noise of the whole list."""
    import comfy.sample

    latents = torch.zeros(len(prompts), 16, 16, 16)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    pictures = []
    for i in range(0, len(prompts), batch):
        chosen = prompts[i : i + batch]
        made = comfy.sample.sample(
            model, noise[i : i + batch], steps, cfg, sampler, scheduler, conditioning(clip, chosen),
            conditioning(clip, [""] * len(chosen)), latents[i : i + batch], disable_pbar=True, seed=seed,
        )  # fmt: skip
        pictures.append(vae.decode(made).movedim(-1, 1).float().cpu())
    return torch.cat(pictures).clamp(0, 1)


def contact_sheet(pictures: Tensor, columns: int) -> Any:
    """The pictures in rows, two pixels apart, as a PIL image."""
    from PIL import Image

    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (130 * columns - 2, 130 * rows - 2), "white")
    for i, one in enumerate(pictures):
        sheet.paste(as_image(one), (130 * (i % columns), 130 * (i // columns)))
    return sheet


def as_image(picture: Tensor) -> Any:
    """[3, H, W] in 0..1 as a PIL image."""
    from PIL import Image

    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
