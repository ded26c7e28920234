"""TrainLoRA's work on the models that ComfyUI has loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import comfy.model_management as mm
import torch

from ..adapters.inject import planned
from ..adapters.lora_file import read_lora
from ..adapters.readers import read_start
from ..adapters.start import StartingLora
from ..config import TrainConfig
from ..data.cache import SampleCache, check_dataset
from ..data.records import Dataset
from ..events import Emit, Notice
from ..families import UNLISTED
from ..files import sha256
from ..loss import check_weighting
from ..optim import check_optimizer
from ..ports import Loan
from ..rerun import find_run, finished
from ..run_folder import run_key
from ..session import Destination, Result, train_lora
from . import lora, paths
from .class_images import with_class_images
from .conditioning import HostTextEncoder
from .encode import HostLatentEncoder, pixel_step
from .identity import fingerprint
from .model import borrowed, model_family
from .noise import noise_process
from .progress import check_interrupt
from .sample import PreviewSampler
from .text_model import borrowed_clip

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def train_on_loaded(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    dataset: Dataset,
    config: TrainConfig,
    emit: Emit,
    *,
    new_run: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Result:
    """Check everything, encode the dataset, borrow the models, train, save.

    A run with the same settings, data and models that was finished is loaded, one that was stopped goes on;
    `new_run` starts again. All models come back unchanged, however it ends. ComfyUI's interrupt is raised as
    it is.
    """
    start = _check(model, config)
    dataset = dataset.hold_out(config.validation.held_out)
    dataset = with_class_images(dataset, config.prior, model, clip, vae, emit)
    check_dataset(dataset, config)
    if model_family(model) is UNLISTED:
        name = type(model.model).__name__
        emit(
            Notice(
                message=f"{name} is no family that we have tested; training by what the model says of itself"
            )
        )
    prints = _fingerprints(model, clip, vae, config)
    config = replace(config, data=replace(config.data, digest=dataset.digest))
    key, runs = run_key(config, prints), paths.runs_directory(config.name)
    folder = None if new_run else find_run(runs, key, config, dataset, emit)
    if folder is not None and (done := finished(folder, config, dataset, paths.lora_directory())):
        emit(
            Notice(
                message=f"{done.path.name} is finished already and was loaded; choose new run to train again"
            )
        )
        return done
    train_text = config.optimizer.text_encoder_lr > 0
    destination = Destination(
        loras=paths.lora_directory(),
        runs=runs,
        key=key,
        base_model=model_family(model).name,
        file_names=lambda layers: lora.file_names(model, layers, config.adapter.file_names),
        text_file_names=lambda layers: lora.text_file_names(clip, layers),
        base_hash=prints[0],
    )
    with torch.inference_mode(False):
        texts = HostTextEncoder(clip, model, config.objective.guidance)
        cache = SampleCache(
            latents=HostLatentEncoder(vae, model),
            texts=texts,
            step=pixel_step(vae, model),
            emit=emit,
            check_interrupt=check_interrupt,
        )
        data = cache.build(dataset, config, train_text=train_text)

        @contextmanager
        def lend() -> Iterator[Loan]:
            with ExitStack() as loans:
                _make_room(model, clip if train_text else None)
                denoiser = loans.enter_context(borrowed(_computing_in(model, config.memory.precision)))
                text = loans.enter_context(borrowed_clip(clip, texts)) if train_text else None
                yield Loan(denoiser=denoiser, text=text)

        return train_lora(
            lend,
            data,
            config,
            destination,
            emit=emit,
            check_interrupt=check_interrupt,
            start=start,
            stop_requested=stop_requested,
            folder=folder,
            sampler=PreviewSampler(model, clip, vae, config.preview, dataset.resolution),
        )


def _check(model: ModelPatcher, config: TrainConfig) -> StartingLora | None:
    """Everything that can be refused before pictures are encoded."""
    check_optimizer(config.optimizer)
    check_weighting(config.objective, noise_process(model.get_model_object("model_sampling")))
    start = None
    if config.adapter.start_from:
        tensors, metadata = read_lora(paths.lora_path(config.adapter.start_from))
        start = read_start(
            tensors, lora.aliases(model), file_alpha=config.adapter.start_alpha, metadata=metadata
        )
    planned(model.model.diffusion_model, config.adapter, start)
    return start


def _fingerprints(model: ModelPatcher, clip: CLIP, vae: VAE, config: TrainConfig) -> list[str]:
    """Everything outside the config that decides the weights; the model's own comes first."""
    process = noise_process(model.get_model_object("model_sampling"))
    prints = [fingerprint(m) for m in (model, clip.patcher, vae.patcher)]
    prints.append(f"{process.prediction} {process.shift} {process.sigmas.sum()} {clip.layer_idx}")
    if config.adapter.start_from:
        prints.append(sha256(paths.lora_path(config.adapter.start_from)))
    return prints


def _make_room(model: ModelPatcher, clip: CLIP | None) -> None:
    """VAE and text encoder leave the device before training, unless the text encoder is trained."""
    device = model.load_device
    if mm.is_device_cpu(device):
        return
    stay = [model] if clip is None else [model, clip.patcher]
    keep = [m for m in mm.current_loaded_models if any(m.model is s or m.model.is_clone(s) for s in stay)]
    mm.free_memory(1e30, device, keep_loaded=keep)


def _computing_in(model: ModelPatcher, precision: str) -> ModelPatcher:
    """The same weights, computed with in another precision; "auto" is what ComfyUI chose."""
    if precision == "auto" or _DTYPES[precision] == model.model.get_dtype_inference():
        return model
    clone = model.clone()
    clone.set_model_compute_dtype(_DTYPES[precision])
    return clone
