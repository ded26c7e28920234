"""What of a dataset a model is trained on and how it is given it: a training and a held-out loss that is
measured afterwards ask here, so that they are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..data.clip_spans import fitted
from ..data.drawn_masks import with_drawn_masks
from ..data.records import Dataset
from ..events import Emit, Notice
from .encode import clip_step
from .identity import known, model_fingerprint
from .model import model_family
from .references import Choices, suited
from .ways import way_of

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choices_of(
    model: ModelPatcher, edit_node: str, clip_vision: ClipVisionModel | None, emit: Emit, name: str
) -> Choices:
    """What is connected and would not be used is said. name: of the input for `clip_vision`."""
    if clip_vision is None:
        return Choices(edit_node=edit_node)
    if not way_of(model).features(model.model):
        emit(Notice(message=f"{type(model.model).__name__} takes no CLIP vision; {name} is not used"))
        return Choices(edit_node=edit_node)
    identity = known(model_fingerprint(clip_vision.patcher))
    return Choices(edit_node=edit_node, vision=clip_vision, vision_identity=identity)


def as_trained(
    dataset: Dataset,
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    choices: Choices,
    held_out: int,
    emit: Emit,
) -> Dataset:
    """The pictures and clips that this model can be trained on, with the frames, control pictures and masks
    that it is given, and so many of them held out. What is left out is said.

    Raises DatasetError if nothing is left, or too little to hold out.
    """
    family = model_family(model)
    dataset, told = fitted(
        dataset,
        step=clip_step(vae, model),
        rate=family.fps or 0,
        model=family.title or type(model.model).__name__,
    )
    for remark in told:
        emit(Notice(message=remark))
    dataset = suited(dataset, model, clip, emit, choices).hold_out(held_out)
    return with_drawn_masks(dataset) if way_of(model).masks else dataset


def computing_in(model: ModelPatcher, precision: str) -> ModelPatcher:
    """The same weights, computed with in another precision; "auto" is what ComfyUI chose."""
    # What the shared model says it computes in may be left over from another clone.
    if precision == "auto":
        return model
    clone = model.clone()
    clone.set_model_compute_dtype(_DTYPES[precision])
    return clone
