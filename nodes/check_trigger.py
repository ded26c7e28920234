"""CheckTrigger: whether a trigger word is rare for the text encoders on the canvas."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.host.trigger import check_trigger
from .sockets import CATEGORY


class CheckTrigger(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CheckTrigger",
            display_name="Check Trigger",
            category=CATEGORY,
            description="Shows how each text encoder reads a trigger word, whether it is an ordinary word,"
            " and three that are rarer.",
            search_aliases=["trigger word", "rare token", "identifier", "tokenize", "触发词"],
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that will be trained with."),
                io.String.Input(
                    "trigger", default="ohwx", tooltip="The word that is to stand for your subject."
                ),
            ],
            outputs=[
                io.String.Output(display_name="trigger", tooltip="The word, for Caption Images."),
                io.String.Output(display_name="report", tooltip="Markdown."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, trigger: str) -> io.NodeOutput:
        found = check_trigger(clip, trigger)
        return io.NodeOutput(found.trigger, found.report, ui={"text": [found.report]})
