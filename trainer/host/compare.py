"""The same prompts and seeds with and without a LoRA, by ComfyUI's own sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..pictures.comparison import Row
from .lora import apply_lora
from .sample import SampleSettings, encode_prompt, sample_image

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

Shot = tuple[str, int]
"""Prompt and seed."""


def sample_rows(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    lora: Mapping[str, Tensor],
    negative: str,
    shots: Sequence[Shot],
    strengths: Sequence[float],
    settings: SampleSettings,
    on_step: Callable[[int, int], None],
) -> list[Row]:
    """A row for each shot, with a picture at each strength; 0 is the untouched model.

    on_step: is told sampling steps (done, of all).
    """
    total = len(shots) * len(strengths) * settings.steps
    columns: list[list[torch.Tensor]] = []
    for strength in strengths:  # the weights are patched once a column
        m, c = (model, clip) if strength == 0 else apply_lora(model, clip, lora, strength, strength)
        unwanted = encode_prompt(c, negative)
        column: list[torch.Tensor] = []
        for prompt, seed in shots:
            start = (len(columns) * len(shots) + len(column)) * settings.steps

            def on_sampled(step: int, _of: int, start: int = start) -> None:
                on_step(start + step, total)

            wanted = encode_prompt(c, prompt)
            column.append(sample_image(m, vae, wanted, unwanted, seed, settings, on_sampled))
            on_step(start + settings.steps, total)
        columns.append(column)
    return [
        Row(prompt=prompt, seed=seed, images=[column[i] for column in columns])
        for i, (prompt, seed) in enumerate(shots)
    ]
