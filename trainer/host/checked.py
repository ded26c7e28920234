"""A training is checked before it begins: settings, pictures and models have to be fit for each other."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import comfy.model_management as mm

from ..adapters.lora_file import read_lora
from ..adapters.readers import read_start
from ..adapters.start import StartingLora
from ..config import MemoryConfig, TrainConfig
from ..data.clip_spans import frame_rate
from ..data.records import Dataset
from ..embedding import split
from ..errors import ConfigError, shortened
from ..events import Emit, Notice
from ..families import UNLISTED
from ..files import sha256
from ..noise import Tokens
from ..ports import Loan
from ..preflight import check, remarks
from . import lora, paths
from .as_trained import as_trained, choices_of, computing_in
from .conditioning import HostTextEncoder
from .embedding import initial_tokens
from .identity import (
    Identities,
    clip_fingerprint,
    identities,
    model_fingerprint,
    vae_fingerprint,
)
from .model import borrowed, model_family, tokens
from .noise import noise_process
from .planning import wanted
from .references import Choices
from .text_model import borrowed_clip
from .ways import check_given, way_of

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    from .judges import ClipVisionJudge, FolderJudge


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A training whose settings, pictures and models were found fit for each other."""

    model: ModelPatcher
    """Computing in the precision that was asked for."""
    clip: CLIP
    dataset: Dataset
    config: TrainConfig
    start: StartingLora | None
    steps: int
    prints: tuple[str, ...]
    """`fingerprints`."""
    models: dict[str, str]
    """Fingerprints of model, clip and vae; empty where one is not known."""
    identities: Identities
    texts: HostTextEncoder
    choices: Choices
    emit: Emit
    judge: ClipVisionJudge | FolderJudge | None = None
    told: set[str] = field(default_factory=set)
    """Remarks on loans."""

    @contextmanager
    def lend(self, memory: MemoryConfig) -> Iterator[Loan]:
        train_text = self.config.encodes_each_step
        with ExitStack() as loans:
            gc.collect()  # what was on the device before: optimizers hold themselves in circles
            mm.soft_empty_cache()
            if self.judge is not None:
                self.judge.leave_device()
            make_room(self.model, self.clip if train_text else None)
            denoiser = loans.enter_context(borrowed(self.model, memory))
            text = loans.enter_context(borrowed_clip(self.texts)) if train_text else None
            for remark in denoiser.remarks:
                if remark not in self.told:
                    self.told.add(remark)
                    self.emit(Notice(message=remark))
            yield Loan(denoiser=denoiser, text=text)


def checked(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    dataset: Dataset,
    config: TrainConfig,
    emit: Emit,
    clip_vision: ClipVisionModel | None,
    judge: ClipVisionJudge | FolderJudge | None = None,
) -> Checked:
    """Raises what `preflight.check` does; says what the user must know of settings and model."""
    config = replace(config, memory=wanted(config.memory))
    check_given(model)
    if way_of(model).start and way_of(model).needed and config.prior.uses_pictures:
        raise ConfigError(
            f"{type(model.model).__name__} draws from a start picture, and class pictures have none; choose"
            " output_preservation (Prior Preservation)"
        )
    choices = choices_of(model, config.data.edit_node, clip_vision, emit, "clip_vision")
    dataset = as_trained(dataset, model, clip, vae, choices, config.validation.held_out, emit)
    drawn_alone = way_of(model).start and way_of(model).needed and config.preview.frames == 1
    if drawn_alone and config.preview.prompts and config.preview.every:
        name = type(model.model).__name__
        emit(
            Notice(
                message=f"{name} draws clips from a start picture, and previews are still pictures without;"
                " raise frames (Train Preview)"
            )
        )
    start = starting_lora(model, config, emit)
    process = noise_process(model.get_model_object("model_sampling"))
    check(config, dataset, model.model.diffusion_model, process, start)
    if config.embedding.vectors:
        initial_tokens(clip, config.embedding.initial_word)
    for remark in remarks(config, dataset):
        emit(Notice(message=remark))
    steps = config.total_steps(dataset.shown)
    if model_family(model) is UNLISTED:
        name = type(model.model).__name__
        emit(
            Notice(
                message=f"{name} is no family that we have tested; training by what the model says of itself"
            )
        )
    prints, models, own = fingerprints(model, clip, vae, config, frame_rate(dataset), emit)
    if choices.vision_identity and any(r.first_frame or r.controls for r in dataset.records):
        prints = (*prints, choices.vision_identity)
    return Checked(
        model=computing_in(model, config.memory.precision),
        clip=clip,
        dataset=dataset,
        config=config,
        start=start,
        steps=steps,
        prints=prints,
        models=models,
        identities=own,
        texts=HostTextEncoder(
            clip,
            model,
            config.objective.guidance,
            config.data.caption_syntax,
            frame_rate(dataset),
            identity=own.conditions,
            network_identity=own.network,
        ),
        choices=choices,
        emit=emit,
        judge=judge,
    )


def starting_lora(model: ModelPatcher, config: TrainConfig, emit: Emit) -> StartingLora | None:
    name = config.adapter.start_from
    if not name:
        return None
    tensors, metadata = read_lora(paths.lora_path(name))
    tensors, embeddings = split(tensors)
    if embeddings:
        emit(
            Notice(
                message=f"{name} brings an embedding of {shortened(embeddings)}; the training goes on from"
                " its LoRA alone"
            )
        )
    start = read_start(
        tensors,
        lora.aliases(model),
        lora.layer_shapes(model),
        file_alpha=config.adapter.start_alpha,
        metadata=metadata,
    )
    if start.left_out:
        emit(
            Notice(
                message=f"{len(start.left_out)} tensors of {name} change norms, biases or other weights that"
                f" no adapter can hold; the training starts without them: {shortened(start.left_out)}"
            )
        )
    return start


def fingerprints(
    model: ModelPatcher, clip: CLIP, vae: VAE, config: TrainConfig, rate: float | None, emit: Emit
) -> tuple[tuple[str, ...], dict[str, str], Identities]:
    """Everything outside the config that decides the weights; the model's own comes first. Those of the
    models by name. rate: of the frames of clips.

    Where something cannot be told, this run is taken for no other, and that is said.
    """
    found = [model_fingerprint(model), clip_fingerprint(clip), vae_fingerprint(vae)]
    prints = [own for own, _ in found]
    if unknown := [what for _, more in found for what in more]:
        prints.append(uuid.uuid4().hex)
        emit(
            Notice(
                message="an earlier run of this graph cannot be recognised, and this one neither later: it is"
                f" not known what {shortened(unknown)} on the model does"
            )
        )
    process = noise_process(model.get_model_object("model_sampling"))
    prints.append(f"{process.prediction} {process.shift} {process.sigmas.sum()}")
    if (own_tokens := tokens(model)) != Tokens():  # earlier versions counted Flux.1's for all
        prints.append(str(own_tokens))
    if config.adapter.start_from:
        prints.append(sha256(paths.lora_path(config.adapter.start_from)))
    of_model, of_clip, of_vae = found
    names = ("model", "clip", "vae")
    models = {name: "" if more else own for name, (own, more) in zip(names, found, strict=True)}
    return tuple(prints), models, identities(model, of_model, of_clip, of_vae, config, rate)


def make_room(model: ModelPatcher, clip: CLIP | None) -> None:
    """VAE and text encoder leave the device before training, unless the text encoder is trained."""
    device = model.load_device
    if mm.is_device_cpu(device):
        return
    stay = [model] if clip is None else [model, clip.patcher]
    # Where only the network lives on, ComfyUI's entry has no model any more; `free_memory` passes it over.
    loaded = ((entry, entry.model) for entry in mm.current_loaded_models)
    keep = [entry for entry, own in loaded if own is not None and any(own.is_clone(s) for s in stay)]
    mm.free_memory(1e30, device, keep_loaded=keep)
