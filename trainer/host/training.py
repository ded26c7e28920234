"""TrainLoRA's work on the models that ComfyUI has loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management as mm
import torch

from ..config import MemoryConfig, TrainConfig
from ..data.cache import SampleCache, cut_to_fit
from ..data.records import Dataset
from ..errors import ConfigError, TrainingError
from ..events import Emit, Notice
from ..memory.report import Plan
from ..own_loss import LossFunction, with_own_loss
from ..processes import Interrupted, Processes
from ..runs.finding import find_run, finished, run_key
from ..runs.judged import Judging
from ..runs.placing import Places
from ..runs.result import Result, shared_result
from ..session import Destination, train_lora
from . import lora, paths
from .active import paused
from .checked import checked
from .class_images import with_class_images
from .encode import HostLatentEncoder, pixel_step
from .jobs import Origin, job_of
from .kept_samples import kept
from .model import model_family
from .planning import plan_run
from .progress import check_interrupt
from .sample import PreviewSampler

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

    from .judges import ClipVisionJudge, FolderJudge


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
    origin: Origin | None = None,
    judge: ClipVisionJudge | FolderJudge | None = None,
    clip_vision: ClipVisionModel | None = None,
    loss: LossFunction | None = None,
) -> Result:
    """Check everything, encode the dataset, borrow the models, train, save.

    A run with the same settings, data and models that was finished is loaded, one that was stopped goes on;
    `new_run` starts again. judge: of the previews, the one that config.validation names. origin: the graph
    that asks; the run's folder gets a job. clip_vision: for networks that take what it sees in a start
    picture. loss: in place of the config's loss of an element. All models come back unchanged, however it
    ends. ComfyUI's interrupt is raised as it is.

    In the processes that `processes.join` has brought together it has to be called in all of them, and each
    gets the result; paths are those of the main one.
    """
    config = with_own_loss(config, loss)
    processes = Processes.current()
    try:
        with processes.together():
            return _trained(
                *(model, clip, vae, dataset, config, emit, processes),
                new_run=new_run,
                stop_requested=stop_requested,
                origin=origin,
                judge=judge,
                clip_vision=clip_vision,
                loss=loss,
            )
    except Interrupted:
        mm.interrupt_current_processing()
        check_interrupt()
        raise


def _trained(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    dataset: Dataset,
    config: TrainConfig,
    emit: Emit,
    processes: Processes,
    *,
    new_run: bool,
    stop_requested: Callable[[], bool],
    origin: Origin | None,
    judge: ClipVisionJudge | FolderJudge | None,
    clip_vision: ClipVisionModel | None,
    loss: LossFunction | None,
) -> Result:
    if config.validation.judge and judge is None:
        raise ConfigError(
            f"these settings have the previews judged by {config.validation.judge}, and no judge is there;"
            " connect it to Train Preview"
        )
    job = checked(model, clip, vae, dataset, config, emit, clip_vision, judge)
    prints = job.prints
    if origin:
        own = job_of(origin, config, dataset, job.models)
        emit = origin.kept(own, emit) if processes.main else emit
    dataset = with_class_images(job.dataset, config.prior, model, clip, vae, prints, emit, processes)
    steps = job.steps
    dataset, config = cut_to_fit(dataset, job.config, job.texts, emit)
    digest, runs = dataset.digest, paths.runs_directory(config.name)
    places = Places(loras=paths.lora_directory(), embeddings=paths.embedding_directory())
    key = run_key(config, dataset, prints)
    processes.check_same({**job.models, "dataset": digest, "settings": json.dumps(config.to_dict())})
    config.check_shared(processes.size)
    folder = find_run(runs, key, config, digest, steps, emit) if processes.main and not new_run else None
    done = finished(folder, config, steps, places) if folder else None
    if processes.any(done is not None):
        if done is not None:
            emit(
                Notice(
                    message=f"{done.path.name} is finished already and was loaded; choose new run to train"
                    " again"
                )
            )
        return shared_result(processes, done)
    if folder is not None and (so_far := paused(folder.path)):
        emit(Notice(message=f"paused at step {len(so_far.losses)}; press Continue on Train LoRA to go on"))
        return so_far
    destination = Destination(
        places=places,
        runs=runs,
        key=key,
        dataset=digest,
        base_model=model_family(model).name,
        file_names=lambda layers: lora.file_names(model, layers, config.adapter.file_names),
        text_file_names=lambda layers: lora.text_file_names(clip, layers),
        base_hash=prints[0],
        trigger=dataset.trigger,
    )
    judging = None
    if judge is not None and config.validation.judge:
        judging = Judging(judge=judge, dataset=dataset)
    with torch.inference_mode(False), kept(emit) as store:
        cache = SampleCache(
            latents=HostLatentEncoder(vae, model, clip, job.choices, identity=job.identities.latents),
            texts=job.texts,
            step=pixel_step(vae, model),
            emit=emit,
            check_interrupt=check_interrupt,
            store=store,
        )
        plan, memory = None, config.memory
        if processes.main:
            plan, memory = plan_run(
                model,
                cache.condition,
                vae,
                clip,
                dataset,
                config.in_each_of(processes.size),
                prints,
                job.lend,
                emit,
                choices=job.choices,
                start=job.start,
                own_loss=loss,
                folder=folder,
            )
        memory = MemoryConfig(**processes.told(lambda: asdict(memory)))
        config = replace(config, memory=memory)
        for records in processes.share(dataset.records):
            if records:
                cache.build(dataset.with_records(records), config, train_text=config.encodes_each_step)
            processes.wait()
        data = cache.build(dataset, config, train_text=config.encodes_each_step)
        try:
            return train_lora(
                job.lend,
                data,
                config,
                destination,
                steps=steps,
                emit=emit,
                check_interrupt=check_interrupt,
                start=job.start,
                own_loss=loss,
                stop_requested=stop_requested,
                folder=folder,
                sampler=PreviewSampler(model, clip, vae, config.preview, dataset, job.choices),
                judging=judging,
                plan=plan,
                processes=processes,
            )
        finally:
            mm.soft_empty_cache()


def job_on_loaded(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    dataset: Dataset,
    config: TrainConfig,
    emit: Emit,
    origin: Origin,
    *,
    clip_vision: ClipVisionModel | None = None,
) -> Path:
    """What `train_on_loaded` would do, written down: the job's file. Nothing is encoded or trained."""
    models = checked(model, clip, vae, dataset, config, emit, clip_vision).models
    return job_of(origin, config, dataset, models).write_new(paths.jobs_directory())


def plan_on_loaded(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    dataset: Dataset,
    config: TrainConfig,
    emit: Emit,
    *,
    clip_vision: ClipVisionModel | None = None,
    loss: LossFunction | None = None,
) -> Plan:
    """What `train_on_loaded` would do, without encoding, training or saving anything."""
    config = with_own_loss(config, loss)
    job = checked(model, clip, vae, dataset, config, emit, clip_vision)
    dataset, config = cut_to_fit(job.dataset, job.config, job.texts, emit)
    with torch.inference_mode(False):
        plan, _ = plan_run(
            *(model, job.texts.encode, vae, clip, dataset, config, job.prints, job.lend, emit),
            choices=job.choices,
            start=job.start,
            own_loss=loss,
        )
    if plan is None:
        raise TrainingError(
            "no step of this training could be tried out, as the node's notice says; when memory is short,"
            f" lower the resolution (it is {config.data.resolution}) or batch_size"
            f" (it is {config.data.batch_size})"
        )
    return plan
