"""The same prompts and seeds with and without a LoRA, by ComfyUI's own sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..pictures.comparison import Row
from ..pictures.drawing import to_pil
from .lora import apply_lora
from .references import UNCHOSEN, Choices, ControlEncoder, HostControls, to_sample
from .sample import SampleSettings, encode_prompt, sample_image
from .ways import way_of

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
    controls: Sequence[HostControls | None] = (),
) -> list[Row]:
    """A row for each shot, with a picture at each strength; 0 is the untouched model.

    on_step: is told sampling steps (done, of all). controls: of each shot; () is none.
    """
    total = len(shots) * len(strengths) * settings.steps
    columns: list[list[torch.Tensor]] = []
    for strength in strengths:  # the weights are patched once a column
        m, c = (model, clip) if strength == 0 else apply_lora(model, clip, lora, strength, strength)
        unwanted: dict[HostControls | None, Any] = {}
        column: list[torch.Tensor] = []
        for (prompt, seed), shown in zip(shots, controls or [None] * len(shots), strict=True):
            start = (len(columns) * len(shots) + len(column)) * settings.steps

            def on_sampled(step: int, _of: int, start: int = start) -> None:
                on_step(start + step, total)

            wanted = encode_prompt(c, prompt, shown)
            if shown not in unwanted:
                unwanted[shown] = encode_prompt(c, negative, shown, negative=True)
            column.append(sample_image(m, vae, wanted, unwanted[shown], seed, settings, on_sampled, shown))
            on_step(start + settings.steps, total)
        columns.append(column)
    return [
        Row(prompt=prompt, seed=seed, images=[column[i] for column in columns])
        for i, (prompt, seed) in enumerate(shots)
    ]


def prompt_controls(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    prompts: Sequence[str],
    images: Tensor | None,
    settings: SampleSettings,
    choices: Choices = UNCHOSEN,
) -> list[HostControls | None]:
    """What each of the prompts is drawn with.

    images: [1, H, W, C] for all prompts, or [N, H, W, C] for N of them; None is none.
    Raises ConfigError for another number, for a model that takes no control picture, and for one that cannot
    draw without.
    """
    name = type(model.model).__name__
    way = way_of(model)
    if way.start and way.needed and (images is None or settings.frames == 1):
        raise ConfigError(
            f"{name} draws clips from a start picture; connect one to control, and set frames to a clip's"
        )
    if images is None:
        return [None] * len(prompts)
    if way.start and settings.frames == 1:
        raise ConfigError("frames is 1, and a start picture is the first frame of a clip; raise frames")
    if len(images) not in (1, len(prompts)):
        raise ConfigError(
            f"control has {len(images)} pictures and there are {len(prompts)} prompts; connect one"
            " for all, or one for each"
        )
    encoder = ControlEncoder(model, vae, clip, choices)
    if not encoder.draws_with_pictures:
        raise ConfigError(f"{name} draws without control pictures; disconnect control")
    size = settings.width, settings.height
    drawn = [to_sample([to_pil(image[None, ..., :3])], size, settings.frames) for image in images]
    shown = [encoder(pictures) for pictures in drawn]
    return shown * len(prompts) if len(shown) == 1 else shown
