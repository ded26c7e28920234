"""What Train LoRA and Plan Training are given, and the config that it makes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..trainer.config import (
    CAPTION_SYNTAXES,
    EDIT_NODES,
    AdapterConfig,
    DataConfig,
    EmbeddingConfig,
    MemoryConfig,
    ObjectiveConfig,
    PriorConfig,
    TrainConfig,
    check_name,
)
from ..trainer.errors import ConfigError
from ..trainer.events import Emit, Notice
from .sockets import (
    Adapter,
    Embedding,
    Memory,
    Objective,
    Optimizer,
    OptimizerOptions,
    Preview,
    PreviewOptions,
    Regularization,
    TrainDataset,
)

if TYPE_CHECKING:
    from ..trainer.data.records import Dataset

CONTINUE, NEW_RUN = "continue", "new run"
HERE, JOB = "here", "job"


def training_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model to train on. It is not copied and not changed."),
        io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
        io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
        TrainDataset.Input("dataset", tooltip="Pictures and captions, from Load Dataset or Caption Images."),
        io.Int.Input(
            "steps",
            default=1000,
            min=1,
            max=1_000_000,
            tooltip="Optimizer steps. 50 to 100 for each picture is a good start for a subject.",
        ),
        io.Float.Input(
            "learning_rate",
            default=1e-4,
            min=1e-7,
            max=1.0,
            step=1e-6,
            round=False,
            tooltip="Peak learning rate. 1e-4 suits most models; halve it when pictures look burnt.",
        ),
        io.Int.Input(
            "rank",
            default=16,
            min=1,
            max=1024,
            tooltip="Size of the LoRA: 4 to 16 for a subject, 16 to 64 for a style.",
        ),
        io.Float.Input(
            "alpha",
            default=0.0,
            min=0.0,
            max=1024.0,
            step=0.5,
            advanced=True,
            tooltip="The update is scaled by alpha / rank. 0 means equal to the rank (scale 1).",
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=1024,
            tooltip="Pictures in one step. More is smoother, and takes more memory.",
        ),
        io.Int.Input(
            "train_seed",
            default=0,
            min=0,
            max=2**64 - 1,
            advanced=True,
            tooltip="Decides every random draw of the run. The same seed gives the same LoRA.",
        ),
        io.String.Input(
            "name",
            default="my_lora",
            tooltip="File name of the LoRA. A name that is taken gets a number.",
        ),
        Adapter.Input("adapter", optional=True, tooltip="From LoRA Adapter: kind, layers, rank by block."),
        Objective.Input("objective", optional=True, tooltip="From Train Objective: loss, noise levels."),
        Optimizer.Input("optimizer", optional=True, tooltip="From Train Optimizer: schedule, EMA."),
        Memory.Input("memory", optional=True, tooltip="From Train Memory: when it does not fit."),
        Preview.Input("preview", optional=True, tooltip="From Train Preview: sample pictures."),
        Regularization.Input("regularization", optional=True, tooltip="From Prior Preservation."),
        io.Combo.Input(
            "existing_run",
            options=[CONTINUE, NEW_RUN],
            default=CONTINUE,
            optional=True,
            advanced=True,
            tooltip="continue: a finished run of the same settings is loaded; a stopped one goes on."
            " new run: trains from the start; earlier files stay.",
        ),
        io.Combo.Input(
            "caption_syntax",
            options=list(CAPTION_SYNTAXES),
            default=CAPTION_SYNTAXES[0],
            optional=True,
            advanced=True,
            tooltip="text: a caption means what it says. comfyui: (word:1.3) is a weight and"
            " embedding:name a file, as in CLIP Text Encode.",
        ),
        io.Combo.Input(
            "where",
            options=[HERE, JOB],
            default=HERE,
            optional=True,
            advanced=True,
            tooltip="here: trains now. job: trains nothing and writes a folder, which scripts/train.py trains"
            " without the page, now or later.",
        ),
        Embedding.Input(
            "embedding", optional=True, tooltip="From Textual Inversion: vectors for a word, trained."
        ),
        clip_vision_input(),
        edit_node_input(),
    ]


def clip_vision_input() -> io.Input:
    return io.ClipVision.Input(
        "clip_vision",
        optional=True,
        tooltip="For image-to-video models that take it, such as Wan 2.1: sees the start picture.",
    )


def edit_node_input() -> io.Input:
    return io.Combo.Input(
        "edit_node",
        options=list(EDIT_NODES),
        default=EDIT_NODES[0],
        optional=True,
        advanced=True,
        tooltip="The node that you will prompt an edit model with. auto: that for its text encoder, for"
        " Qwen-Image-Edit the Plus node; its first release has the other one.",
    )


def name_error(name: str | None) -> str | None:
    """What is wrong with a name that does not come through a link."""
    try:
        if name is not None:
            check_name(name)
    except ConfigError as error:
        return str(error)
    return None


def train_config(
    dataset: Dataset,
    steps: int,
    learning_rate: float,
    rank: int,
    alpha: float,
    batch_size: int,
    train_seed: int,
    name: str,
    adapter: AdapterConfig | None = None,
    objective: ObjectiveConfig | None = None,
    optimizer: OptimizerOptions | None = None,
    memory: MemoryConfig | None = None,
    preview: PreviewOptions | None = None,
    regularization: PriorConfig | None = None,
    caption_syntax: str = CAPTION_SYNTAXES[0],
    embedding: EmbeddingConfig | None = None,
    edit_node: str = EDIT_NODES[0],
) -> TrainConfig:
    optimizer = optimizer or OptimizerOptions()
    preview = preview or PreviewOptions()
    embedding = embedding or EmbeddingConfig()
    if embedding.vectors and not embedding.placeholder:
        embedding = replace(embedding, placeholder=dataset.trigger)
    return TrainConfig(
        name=name,
        steps=steps,
        epochs=optimizer.epochs,
        seed=train_seed,
        adapter=replace(adapter or AdapterConfig(), rank=rank, alpha=alpha),
        objective=objective or ObjectiveConfig(),
        prior=regularization or PriorConfig(),
        optimizer=replace(optimizer.optimizer, learning_rate=learning_rate),
        memory=memory or MemoryConfig(),
        preview=preview.preview,
        validation=preview.validation,
        save=preview.save,
        data=DataConfig(
            batch_size=batch_size,
            resolution=dataset.resolution,
            caption_syntax=caption_syntax,
            edit_node=edit_node,
        ),
        embedding=embedding,
    )


def tell_of_recipe(model: Any, optimizer: OptimizerOptions | None, emit: Emit) -> None:
    """Says when the settings are a recipe's for models of another family."""
    from ..trainer.families import FAMILIES
    from ..trainer.host.model import model_family

    made_for = optimizer.made_for if optimizer else None
    own = model_family(model)
    if made_for is None or not made_for.families or own.name in made_for.families:
        return
    titles = ", ".join(f.title for f in FAMILIES if f.name in made_for.families)
    emit(
        Notice(
            message=f"the recipe {made_for.recipe} is for {titles}, and the model is {own.title}: its rate,"
            " steps and noise levels may not suit; choose a recipe of this model"
        )
    )
