"""The socket types of the pack. LORA_MODEL and LOSS_MAP are ComfyUI's own."""

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..trainer.config import OptimizerConfig, PreviewConfig, SaveConfig, ValidationConfig

TrainDataset = io.Custom("TRAIN_DATASET")
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")

CATEGORY = "In-Graph LoRA"

Adapter = io.Custom("LORA_ADAPTER")
Objective = io.Custom("TRAIN_OBJECTIVE")
Optimizer = io.Custom("TRAIN_OPTIMIZER")
Memory = io.Custom("TRAIN_MEMORY")
Preview = io.Custom("TRAIN_PREVIEW")
Regularization = io.Custom("TRAIN_REGULARIZATION")
Embedding = io.Custom("TRAIN_EMBEDDING")
Framing = io.Custom("IMAGE_FRAMING")
Clips = io.Custom("TRAIN_CLIPS")


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """What travels in a TRAIN_PREVIEW."""

    preview: PreviewConfig = PreviewConfig()
    validation: ValidationConfig = ValidationConfig()
    save: SaveConfig = SaveConfig()
    judge: Any = None
    """Of `trainer.host.judges`; None without one."""


@dataclass(frozen=True)
class MadeFor:
    """Which models the settings of a recipe are for."""

    recipe: str
    families: tuple[str, ...]
    """`Family.name`; () is any."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """What travels in a TRAIN_OPTIMIZER."""

    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: int = 0
    made_for: MadeFor | None = None
    """None: chosen by hand."""
