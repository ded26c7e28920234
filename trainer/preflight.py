"""Everything that can be refused or must be told before anything is loaded, generated or encoded."""

from __future__ import annotations

from torch import nn

from .adapters.inject import check_start, planned
from .adapters.start import StartingLora
from .config import TrainConfig
from .data.records import Dataset
from .errors import ConfigError, DatasetError, shortened
from .loss import check_weighting
from .noise import NoiseProcess
from .optim import check_optimizer
from .runs.judged import shots_of
from .text import garbled, mentions


def check(
    config: TrainConfig,
    dataset: Dataset,
    net: nn.Module,
    process: NoiseProcess,
    start: StartingLora | None = None,
) -> None:
    """Raises ConfigError, DatasetError, LoraFileError or ModelError for what cannot be trained.

    dataset: with its held-out pictures, before class pictures are generated. net: the network without
    adapters. process: of its noise. start: the LoRA to go on from.
    """
    check_optimizer(config.optimizer)
    check_weighting(config.objective, process)
    if config.trains_lora:
        planned(net, config.adapter, start)
    if start:
        check_start(net, start)
    _check_pictures(config, dataset)
    if config.validation.judge:
        shots_of(config, dataset.trigger)
    if config.embedding.vectors:
        _check_placeholder(config, dataset)


def remarks(config: TrainConfig, dataset: Dataset) -> list[str]:
    """What the user must be told of settings and captions that can be used."""
    prior, preview = config.prior, config.preview
    settings = [("class_prompt", prior.class_prompt), ("negative", preview.negative)]
    settings += [("prompts", prompt) for prompt in preview.all_prompts]
    told = [garbled([*settings, *dataset.texts])]
    if config.embedding.vectors and not config.trains_lora:
        lacking = _without_placeholder(config, dataset)
        told.append(
            f"{len(lacking)} captions lack the placeholder ({shortened(lacking)}); their pictures teach the"
            " embedding nothing"
            if lacking
            else None
        )
    return [text for text in told if text]


def _without_placeholder(config: TrainConfig, dataset: Dataset) -> list[str]:
    """Names of pictures of which no caption has it."""
    word = config.embedding.placeholder
    shown = [r for r in dataset.records if r.role == "instance"]
    return [r.name for r in shown if not any(mentions(word, text) for text in r.texts)]


def _check_placeholder(config: TrainConfig, dataset: Dataset) -> None:
    instances = sum(r.role == "instance" for r in dataset.records)
    if len(_without_placeholder(config, dataset)) == instances:
        example = next(r.caption for r in dataset.records if r.role == "instance")
        raise DatasetError(
            f"no caption has the placeholder {config.embedding.placeholder!r} (one is {example[:80]!r}); set"
            " it to the word that stands for your subject there, or add it with Caption Images"
        )


def _check_pictures(config: TrainConfig, dataset: Dataset) -> None:
    prior, size = config.prior, config.data.batch_size
    if not dataset.shown:
        raise DatasetError("the dataset has no picture to train on; load a folder with at least one")
    class_captions = not prior.uses_pictures or prior.class_prompt.strip()
    used = [r for r in dataset.records if r.role != "class" or not class_captions]
    if empty := [r.name for r in used if not r.caption.strip()]:
        raise DatasetError(
            f"{len(empty)} pictures have no caption ({shortened(empty)}); write .txt files beside them"
            " or set a template in CaptionImages"
        )
    if size > dataset.shown:
        raise ConfigError(
            f"batch_size {size} is larger than the dataset ({dataset.shown} pictures with repeats);"
            " lower batch_size, raise repeats or add pictures"
        )
    generated = prior.class_images > 0 and prior.class_prompt.strip()
    if prior.uses_pictures and not generated and all(r.role != "class" for r in dataset.records):
        raise DatasetError(
            "prior preservation needs class pictures; set class_folder in LoadDataset or a class_prompt"
            " in PriorPreservation"
        )
