"""The socket types of the pack. LORA_MODEL and LOSS_MAP are ComfyUI's own."""

from dataclasses import dataclass

from comfy_api.latest import io

from ..trainer.config import PreviewConfig, SaveConfig, ValidationConfig

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
