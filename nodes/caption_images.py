"""CaptionImages: writes captions from a template."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..trainer.data import captions
from ..trainer.text import garbled
from .sockets import CATEGORY, TrainDataset

if TYPE_CHECKING:
    from ..trainer.data.captions import OnExisting
    from ..trainer.data.records import Dataset

log = logging.getLogger(__name__)

RESERVED = "Reserved for captioning by a model. The template method does not use it."


class CaptionImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CaptionImages",
            display_name="Caption Images",
            category=CATEGORY,
            description="Writes captions from a template with a trigger word and a class word.",
            search_aliases=["caption", "trigger word", "tag images", "打标"],
            inputs=[
                TrainDataset.Input("dataset", tooltip="Pictures, from Load Dataset."),
                io.Combo.Input(
                    "method",
                    options=["template"],
                    default="template",
                    tooltip="template: the caption is the text below with its placeholders filled in.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="A rare word that will stand for your subject or style, such as ohwx."
                    " Pictures from class_folder do not get it.",
                ),
                io.String.Input(
                    "class_word", default="", tooltip="What the subject is in general, such as dog or woman."
                ),
                io.String.Input(
                    "template",
                    default="a photo of {trigger} {class}",
                    tooltip="May hold {trigger}, {class}, {filename} and {caption}, the one that is there."
                    ' "{trigger}, {caption}" with overwrite puts the trigger before each caption.',
                ),
                io.Combo.Input(
                    "on_existing",
                    options=["keep", "overwrite", "append"],
                    default="keep",
                    tooltip="For pictures that have a caption. keep: leave it. overwrite: use the template."
                    " append: add what it does not say yet.",
                ),
                io.Clip.Input("clip", optional=True, tooltip=RESERVED),
                io.String.Input("model_folder", default="", optional=True, advanced=True, tooltip=RESERVED),
            ],
            outputs=[
                TrainDataset.Output(display_name="dataset", tooltip="The pictures with their new captions."),
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="All captions, in the dataset's order.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        method: str,
        trigger: str,
        class_word: str,
        template: str,
        on_existing: OnExisting,
        clip: Any = None,
        model_folder: str = "",
    ) -> io.NodeOutput:
        done = captions.apply(
            dataset, template=template, trigger=trigger, class_word=class_word, on_existing=on_existing
        )
        unused = [
            n for n, given in (("clip", clip is not None), ("model_folder", model_folder.strip())) if given
        ]
        notes = [f"{name} is not used by the method {method!r}" for name in unused]
        if odd := garbled(done.texts):
            notes.append(odd)
        for note in notes:
            log.warning("Caption Images: %s", note)
        lines = [f"{r.name}: {r.caption}" for r in done.records]
        return io.NodeOutput(done, [r.caption for r in done.records], ui={"text": [*notes, *lines]})
