"""TrainMemory: what is traded between time and memory."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.config import BASE_PRECISIONS, FITS, PRECISIONS, MemoryConfig
from .sockets import CATEGORY, Memory

_D = MemoryConfig()


class TrainMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainMemory",
            display_name="Train Memory",
            category=CATEGORY,
            description="Levers for training that does not fit, or that should be faster.",
            search_aliases=[
                "out of memory",
                "oom",
                "gradient checkpointing",
                "torch compile",
                "显存",
                "training memory",
                "vram",
                "训练显存",
            ],
            inputs=[
                io.Int.Input(
                    "checkpointing",
                    default=_D.checkpointing,
                    min=0,
                    max=64,
                    tooltip="Gradient checkpointing: 0 off (fastest), 1 every block (least memory, a third"
                    " slower), n every n-th block.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=_D.precision,
                    advanced=True,
                    tooltip="What the model computes in. auto: as ComfyUI chose. The LoRA is always fp32.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=_D.compile,
                    advanced=True,
                    tooltip="torch.compile for each block: a slow first step, then faster ones.",
                ),
                io.Float.Input(
                    "streamed",
                    default=_D.streamed,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Share of the model's blocks that stay in system memory and come to the card for"
                    " their turn. 0: all of the model is on the card. For models that do not fit.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=_D.fit,
                    optional=True,
                    tooltip="auto: what fits the free memory and is fastest is chosen, and said. manual: as"
                    " checkpointing, streamed, base_precision and offload_activations say.",
                ),
                io.Combo.Input(
                    "base_precision",
                    options=list(BASE_PRECISIONS),
                    default=_D.base_precision,
                    optional=True,
                    advanced=True,
                    tooltip="What the model's blocks are held in while the LoRA trains. fp8 and int8 take"
                    " half of bf16's memory. The model on the canvas stays as it is.",
                ),
                io.Boolean.Input(
                    "offload_activations",
                    default=_D.offload_activations,
                    optional=True,
                    advanced=True,
                    tooltip="What checkpointed blocks keep lies in system memory: for large batches and"
                    " resolutions.",
                ),
            ],
            outputs=[Memory.Output(display_name="memory", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(MemoryConfig(**options))
