"""ApplyLoRA: a LoRA from the graph, or from a file, on the model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.errors import LoraFileError
from ..trainer.host import paths
from .sockets import CATEGORY, LoraModel

_FROM_GRAPH = "[from the lora input]"


class ApplyLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ApplyLoRA",
            display_name="Apply LoRA (In-Graph)",
            category=CATEGORY,
            description="Puts a trained LoRA, or a LoRA file, on the model and the CLIP.",
            search_aliases=["apply lora", "lora", "load lora", "preview lora", "应用 LoRA"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to put the LoRA on. The input itself stays untouched."
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="How strongly the LoRA acts: 1 as trained, 0 off, below 0 the opposite.",
                ),
                io.Float.Input(
                    "strength_clip",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    advanced=True,
                    tooltip="The same for the text encoder. It matters only when the LoRA trained it.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Needed only for a LoRA that trained the text encoder."
                ),
                LoraModel.Input(
                    "lora", optional=True, tooltip="A LoRA from Train LoRA. It wins over lora_name."
                ),
                io.Combo.Input(
                    "lora_name",
                    options=[_FROM_GRAPH, *paths.lora_names()],
                    default=_FROM_GRAPH,
                    optional=True,
                    tooltip="A LoRA file, used when nothing is connected to lora.",
                ),
                io.Float.Input(
                    "file_alpha",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    optional=True,
                    advanced=True,
                    tooltip="The alpha that a file was trained with, if it carries none (DiffSynth-Studio)."
                    " The LoRA is scaled by alpha / rank. 0 means equal to the rank.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA on it."),
                io.Clip.Output(
                    display_name="clip", tooltip="The CLIP with the LoRA on it, if one was given."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        strength_model: float,
        strength_clip: float,
        clip: Any = None,
        lora: dict[str, Any] | None = None,
        lora_name: str = _FROM_GRAPH,
        file_alpha: float = 0.0,
    ) -> io.NodeOutput:
        from ..trainer.adapters.lora_file import read_lora
        from ..trainer.host.lora import apply_lora

        if lora is None:
            if lora_name == _FROM_GRAPH:
                raise LoraFileError("no LoRA is given; connect lora or choose a file in lora_name")
            lora, _ = read_lora(paths.lora_path(lora_name))
        if strength_model == 0 and strength_clip == 0:
            return io.NodeOutput(model, clip)
        notices: list[str] = []
        patched = apply_lora(
            model, clip, lora, strength_model, strength_clip, file_alpha=file_alpha, notify=notices.append
        )
        return io.NodeOutput(*patched, ui={"text": notices} if notices else None)
