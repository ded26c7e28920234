"""The plan of a run on the models that ComfyUI has loaded: what it will take, before anything is encoded."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..adapters.start import StartingLora
from ..config import BASE_PRECISIONS, MemoryConfig, TrainConfig
from ..data.batches import CachedSample
from ..data.cache import kept_bytes
from ..data.prefetch import AHEAD
from ..data.records import Dataset
from ..data.store import IN_MEMORY, size_of
from ..data.views import View, views
from ..events import Emit, Notice, Phase, Planned
from ..measure import measure
from ..memory.advice import explained_out_of_memory
from ..memory.blocks import blocks
from ..memory.plan import Measured, leanest_levers
from ..memory.report import Plan, planned
from ..own_loss import LossFunction
from ..ports import Conditioning, ControlPictures, Loan
from ..runs.folder import RunFolder
from ..space import size, space
from ..text import mentions
from . import paths
from .base_precision import available
from .encode import pixel_step
from .kept_conditions import pack
from .kept_samples import limit
from .model import model_family
from .progress import check_interrupt
from .references import UNCHOSEN, Choices, ControlEncoder, HostControls, to_sample
from .sample import empty_latent

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

Encode = Callable[[str, Tensor, "HostControls | None"], Conditioning]
"""Caption, latent and control pictures to a condition."""

_KEPT = 8
_measured: OrderedDict[str, Measured] = OrderedDict()
"""What was tried out since ComfyUI started: the same run is not tried out again."""


def plan_run(
    model: ModelPatcher,
    encode: Encode,
    vae: VAE,
    clip: CLIP,
    dataset: Dataset,
    config: TrainConfig,
    prints: tuple[str, ...],
    lend: Callable[[MemoryConfig], AbstractContextManager[Loan]],
    emit: Emit,
    *,
    choices: Choices = UNCHOSEN,
    start: StartingLora | None = None,
    own_loss: LossFunction | None = None,
    folder: RunFolder | None = None,
) -> tuple[Plan | None, MemoryConfig]:
    """The plan, which is said, and the levers to train with. Without a plan where no step could be tried out,
    which is said too.

    config: with `wanted` levers. prints: fingerprints of the models. start: the LoRA to go on from. folder:
    the run that goes on, which keeps its base precision.
    """
    memory = config.memory
    manual = memory.fit == "manual"
    largest, batch = _largest(dataset, config, pixel_step(vae, model))
    controls = ControlEncoder(model, vae, clip, choices)(_largest_controls(dataset, largest))
    empty = empty_latent(model, vae, *largest.size, largest.frames)[0]
    samples, cached = _samples(encode, dataset, config, empty, batch, controls)
    key = _key(config, prints, samples)
    if key not in _measured:
        emit(Phase(name="trying out one step", done=0, total=1))
        levers = memory if manual else _safest(model, memory)
        try:
            with explained_out_of_memory(config), lend(levers) as loan:
                _measured[key] = measure(
                    *(loan, config, samples),
                    start=start,
                    own_loss=own_loss,
                    check_interrupt=check_interrupt,
                )
        except torch.OutOfMemoryError:
            if manual:
                raise
            mm.soft_empty_cache()
            message = "one step could not be tried out, for memory is short; the leanest levers are taken"
            emit(Notice(message=message))
            return None, leanest_levers(memory) if _has_blocks(model) else memory
        except Exception as error:  # noqa: BLE001 - what stops a training too will stop it again
            emit(Notice(message=f"this run has no plan, for one step could not be tried out: {error}"))
            return None, memory
        while len(_measured) > _KEPT:
            _measured.popitem(last=False)
    found = replace(_measured[key], cached=cached)
    free = free_on(model)
    before = folder.config().get("memory", {}).get("base_precision") if folder else None
    precisions = (before,) if before in BASE_PRECISIONS else tuple(available())
    plan = Plan(
        batch=f"{batch} × {largest.size[0]}×{largest.size[1]}"
        + (f" × {largest.frames} frames" if largest.frames > 1 else ""),
        chosen=planned(found, memory, free, precisions),
        measured=found,
        device_free=free,
        host_free=free if found.on_cpu else psutil.virtual_memory().available,
        precisions=precisions,
        device="machine" if found.on_cpu else "card",
        disk=space(
            config,
            config.total_steps(max(1, dataset.shown)),
            adapters=found.adapters,
            optimizer=found.optimizer,
            folder=paths.output_directory(),
            side=dataset.resolution,
            before=size(folder.path) if folder else 0,
            cache=_on_disk(dataset, config, pixel_step(vae, model), samples[0], largest),
        ),
    )
    emit(Planned(line=plan.line))
    for warning in plan.warnings:
        emit(Notice(message=warning))
    return plan, plan.chosen.memory


def wanted(memory: MemoryConfig) -> MemoryConfig:
    """With fit auto the levers are chosen, so what the widgets say is no wish, and no part of a run's key."""
    if memory.fit == "manual":
        return memory
    return MemoryConfig(precision=memory.precision, compile=memory.compile)


def _largest(dataset: Dataset, config: TrainConfig, step: int) -> tuple[View, int]:
    """(the view with the most pixels, pictures that go through the network at once)."""
    used = [r for r in dataset.records if r.role != "class" or config.prior.uses_pictures]
    seen = (v for r in used for v in views(r, resolution=dataset.resolution, step=step))
    largest = max(seen, key=lambda v: (v.size[0] * v.size[1] * v.frames, v.size, v.frames))
    return largest, min(config.data.batch_size, max(1, dataset.shown))


def _samples(
    encode: Encode,
    dataset: Dataset,
    config: TrainConfig,
    empty: Tensor,
    batch: int,
    controls: HostControls | None,
) -> tuple[list[CachedSample], int]:
    """A batch with latents like `empty`, the longest caption and these control pictures, and what samples
    take of memory in bytes."""
    latent = torch.randn(empty.shape, generator=torch.Generator().manual_seed(0))
    word = config.embedding.placeholder
    caption = max(
        (text for r in dataset.records for text in r.texts), key=lambda t: (mentions(word, t), len(t))
    )
    live = config.encodes_each_step
    with torch.no_grad():
        condition = None if live else encode(caption, latent, controls)
        prior = config.prior
        of_class = encode(prior.class_prompt, latent, controls) if prior.preserves_output else None
    sample = CachedSample(
        latent=latent,
        conditioning=condition,
        key="plan",
        caption=caption,
        empty=condition,
        class_conditioning=of_class,
        references=controls if live else None,
    )
    each = latent.numel() * latent.element_size() + sum(_bytes(c) for c in (condition, of_class))
    everything = each * len(dataset.records)
    kept = min(everything, IN_MEMORY + each * batch * (AHEAD + 2)) if limit() else everything
    return [sample] * batch, kept


def _on_disk(dataset: Dataset, config: TrainConfig, step: int, sample: CachedSample, largest: View) -> int:
    """Bytes that the cache takes for this dataset; none where it is in memory."""
    if not limit():
        return 0
    found = sample.conditioning if sample.conditioning is not None else sample.class_conditioning
    packed = None if found is None else pack(found)
    return kept_bytes(
        *(dataset, config, step),
        latent=sample.latent,
        pixels=largest.size[0] * largest.size[1] * largest.frames,
        condition=0 if packed is None else size_of(packed),
    )


def _largest_controls(dataset: Dataset, view: View) -> ControlPictures:
    """Blank ones, as many and as large as the most that a picture of the dataset has."""
    all_of = [[c.size for c in r.controls] or [r.size] * r.first_frame for r in dataset.records]
    largest = max(all_of, key=lambda sizes: (len(sizes), sum(w * h for w, h in sizes)), default=[])
    return to_sample([Image.new("RGB", own) for own in largest], view.size, view.frames)


def _bytes(condition: Any) -> int:
    if condition is None:
        return 0
    values = [v for c in condition.values() for v in (c.cond if isinstance(c.cond, list) else [c.cond])]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))


def _safest(model: ModelPatcher, memory: MemoryConfig) -> MemoryConfig:
    """Resident where the model fits with room to spare or has no blocks, otherwise all blocks streamed."""
    roomy = mm.is_device_cpu(model.load_device) or model.model_size() < 0.6 * free_on(model)
    roomy = roomy or not _has_blocks(model)
    return replace(
        memory,
        checkpointing=1,
        streamed=0.0 if roomy else 1.0,
        base_precision="as loaded",
        offload_activations=False,
    )


def _has_blocks(model: ModelPatcher) -> bool:
    return bool(blocks(model.model.diffusion_model, model_family(model).blocks))


def free_on(model: ModelPatcher) -> int:
    """Bytes that a run may take on the device: what is free, and what ComfyUI's models hold there."""
    device = model.load_device
    free = int(mm.get_free_memory(device))
    if mm.is_device_cpu(device):  # the weights lie there already
        return free + int(model.model_size())
    entries = [entry for entry in mm.current_loaded_models if entry.model is not None]
    held = sum(entry.model_loaded_memory() for entry in entries if entry.device == device)
    return free + int(held) - int(mm.extra_reserved_memory())


def _key(config: TrainConfig, prints: tuple[str, ...], samples: list[CachedSample]) -> str:
    """Of all that decides what is measured."""
    settings = config.to_dict()
    matters = [
        settings[name] for name in ("adapter", "objective", "prior", "optimizer", "memory", "embedding")
    ]
    sample = samples[0]
    shapes = [str(tuple(sample.latent.shape)), len(samples), _shapes(sample.conditioning)]
    if sample.references is not None:
        shapes.append(str(tree_map_only(Tensor, lambda t: t.shape, dict(sample.references.values))))
    return hashlib.sha256(json.dumps([prints, matters, shapes]).encode()).hexdigest()


def _shapes(condition: Any) -> str:
    if condition is None:
        return ""
    values = {k: tree_map_only(Tensor, lambda t: t.shape, c.cond) for k, c in sorted(condition.items())}
    return str(values)
