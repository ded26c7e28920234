"""PriorPreservation: keep the class while its member is learned."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.config import PRIOR_METHODS, PriorConfig
from .sockets import CATEGORY, Regularization


class PriorPreservation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorPreservation",
            display_name="Prior Preservation",
            category=CATEGORY,
            description="Keeps what the model knows of the class, so that not every figurine becomes yours.",
            search_aliases=["dreambooth", "regularization", "class images", "dop", "正则化"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=[m for m in PRIOR_METHODS if m != "none"],
                    default="class_images",
                    tooltip="class_images: DreamBooth. class_images_base_target: the same,"
                    " but towards what the untouched model says. output_preservation: no class pictures;"
                    " the model must answer the class prompt as before.",
                ),
                io.String.Input(
                    "class_prompt",
                    default="",
                    tooltip="The class without the identifier, for example: a photo of a figurine.",
                ),
                io.Float.Input(
                    "weight", default=1.0, min=0.0, max=10.0, step=0.1, tooltip="Weight beside the main loss."
                ),
                io.Int.Input(
                    "class_images",
                    default=100,
                    min=0,
                    max=1000,
                    tooltip="Class pictures wanted. What class_folder of Load Dataset lacks is generated from"
                    " class_prompt by the untouched model; kept and used again.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=200, advanced=True, tooltip="Sampling steps of each."
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Guidance of each.",
                ),
            ],
            outputs=[Regularization.Output(display_name="regularization", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(PriorConfig(**options))
