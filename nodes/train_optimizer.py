"""TrainOptimizer: optimizer, schedule, clipping, accumulation, moving average."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.config import OPTIMIZERS, SCHEDULES, OptimizerConfig
from .sockets import CATEGORY, Optimizer, OptimizerOptions

_D = OptimizerConfig()


class TrainOptimizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainOptimizer",
            display_name="Train Optimizer",
            category=CATEGORY,
            description="Optimizer and learning-rate schedule for Train LoRA.",
            search_aliases=[
                "adamw",
                "prodigy",
                "lion",
                "muon",
                "came",
                "ema",
                "cosine",
                "优化器",
                "training optimizer",
                "训练优化器",
            ],
            inputs=[
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=_D.name,
                    tooltip="adamw and adafactor are always there, muon from torch 2.9 on; the others name"
                    " the package they need. With prodigy and prodigy_plus set learning_rate to 1.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default=_D.schedule,
                    tooltip="How the learning rate falls after the warm-up.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=_D.warmup_steps,
                    min=-1,
                    max=100_000,
                    tooltip="Steps in which the learning rate rises. -1: 5 % of the run, at most 100.",
                ),
                io.Int.Input(
                    "accumulation",
                    default=_D.accumulation,
                    min=1,
                    max=4096,
                    tooltip="Batches in one step: 2 × batch 2 learns as batch 4, in less memory.",
                ),
                io.Int.Input(
                    "epochs",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Passes over the dataset. 0: Train LoRA's steps count.",
                ),
                io.Float.Input(
                    "text_encoder_lr",
                    default=_D.text_encoder_lr,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="Learning rate of a LoRA on the text encoder (5e-5 is usual). 0: not trained.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=_D.weight_decay,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    advanced=True,
                    tooltip="Pulls the LoRA's weights to zero.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=_D.max_grad_norm,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Larger gradients are clipped to this norm. 0: off.",
                ),
                io.Float.Input(
                    "lora_plus_ratio",
                    default=_D.lora_plus_ratio,
                    min=0.1,
                    max=64.0,
                    step=1.0,
                    advanced=True,
                    tooltip="LoRA+: how much faster B learns than A (16 in the paper). 1: off.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=_D.ema_decay,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    round=False,
                    advanced=True,
                    tooltip="Moving average of the LoRA's weights (0.99 to 0.999). 0: off.",
                ),
                io.Boolean.Input(
                    "save_ema",
                    default=_D.save_ema,
                    advanced=True,
                    tooltip="With ema_decay: save the averaged weights instead of the last ones.",
                ),
                io.Int.Input(
                    "cycles",
                    default=_D.cycles,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip="Restarts of cosine_with_restarts.",
                ),
                io.Float.Input(
                    "power",
                    default=_D.power,
                    min=0.1,
                    max=10.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Exponent of polynomial.",
                ),
            ],
            outputs=[Optimizer.Output(display_name="optimizer", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, optimizer: str, epochs: int, **options: Any) -> io.NodeOutput:
        config = OptimizerConfig(name=optimizer, **options)
        return io.NodeOutput(OptimizerOptions(optimizer=config, epochs=epochs))
