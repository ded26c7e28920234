"""TextualInversion: vectors for a word, trained in the text encoder's input."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.config import EmbeddingConfig
from .sockets import CATEGORY, Embedding

_D = EmbeddingConfig()


class TextualInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TextualInversion",
            display_name="Textual Inversion",
            category=CATEGORY,
            description="Trains vectors that stand for a word, alone or together with a LoRA. They are saved"
            " in output/embeddings; embedding: with the file's name uses them in a prompt.",
            search_aliases=["textual inversion", "embedding", "pivotal tuning", "文本反转", "嵌入"],
            inputs=[
                io.String.Input(
                    "placeholder",
                    default="",
                    tooltip="The word of the captions that the vectors stand for. Empty: the trigger word of"
                    " Caption Images.",
                ),
                io.String.Input(
                    "initial_word",
                    default="object",
                    tooltip="What the vectors mean at first: cat, woman, painting. Several words: the mean.",
                ),
                io.Int.Input(
                    "vectors",
                    default=4,
                    min=1,
                    max=75,
                    tooltip="More hold more detail and leave less room for the rest of the prompt: 1 to 16.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=_D.learning_rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="Of the vectors. The LoRA has that of Train LoRA.",
                ),
                io.Boolean.Input(
                    "with_lora",
                    default=_D.with_lora,
                    tooltip="Off: the vectors alone, a file of some kilobytes. On: a LoRA at the same time"
                    " (pivotal tuning).",
                ),
            ],
            outputs=[Embedding.Output(display_name="embedding", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(EmbeddingConfig(**options))
