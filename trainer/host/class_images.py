"""Class pictures for prior preservation: what the dataset lacks is sampled by the untouched model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..config import PriorConfig
from ..data.images import inspect_image
from ..data.records import Dataset, ImageRecord
from ..events import Emit, Notice, Phase
from ..files import write_image
from ..pictures.drawing import to_pil
from ..processes import ALONE, Processes
from . import paths
from .progress import check_interrupt
from .sample import SampleSettings, encode_prompt, sample_image

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE


def with_class_images(
    dataset: Dataset,
    prior: PriorConfig,
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    models: Sequence[str],
    emit: Emit,
    processes: Processes = ALONE,
) -> Dataset:
    """The dataset with at least `prior.class_images` pictures of the class, if there is a class prompt.

    Class pictures without a caption get the class prompt.

    Generated pictures are kept below output/in-graph-lora/class-images and used again for the same models,
    prompt and size. models: their fingerprints. Must run outside a loan of the model.
    """
    dataset = dataset.with_records(
        r.with_caption(prior.class_prompt) if r.role == "class" and not r.caption.strip() else r
        for r in dataset.records
    )
    have = sum(r.role == "class" for r in dataset.records)
    missing = prior.class_images - have
    if not prior.uses_pictures or missing <= 0 or not prior.class_prompt.strip():
        return dataset
    settings = SampleSettings(
        steps=prior.steps,
        cfg=prior.cfg,
        sampler_name="euler",
        scheduler="normal",
        width=dataset.resolution,
        height=dataset.resolution,
    )
    key = hashlib.sha256(f"{models}|{prior.class_prompt}|{settings}".encode()).hexdigest()
    folder = paths.class_images_directory() / key[:16]
    positive, negative = encode_prompt(clip, prior.class_prompt), encode_prompt(clip, "")
    made, records = 0, []

    def picture(seed: int) -> Path:
        nonlocal made
        check_interrupt()
        path = folder / f"{seed:05d}.png"
        if not path.exists():
            emit(Phase(name="generating class pictures", done=seed, total=missing))
            drawn: Image.Image = to_pil(sample_image(model, vae, positive, negative, seed, settings))
            write_image(path, drawn)
            made += 1
        return path

    for seeds in processes.share(range(missing)):
        for seed in seeds:
            picture(seed)
        processes.wait()
    for seed in range(missing):
        path = picture(seed)
        size, digest = inspect_image(path)
        records.append(
            ImageRecord(path=path, caption=prior.class_prompt, size=size, digest=digest, role="class")
        )
    if made:
        emit(Notice(message=f"generated {made} class pictures in {folder}"))
    return dataset.with_records([*dataset.records, *records])
