"""EditCaptions: changes captions that are there, wherever they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..trainer.data.caption_edits import Edits, edited
from ..trainer.errors import shortened
from .captions_out import WRITE_SIDECARS, captions_out
from .sockets import CATEGORY, TrainDataset

if TYPE_CHECKING:
    from ..trainer.data.records import Dataset

_E = Edits()


class EditCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EditCaptions",
            display_name="Edit Captions",
            category=CATEGORY,
            description="Changes captions, wherever they came from: find and replace, the class word"
            " replaced by the trigger, rare tags dropped, text before and behind.",
            search_aliases=[
                "replace tags",
                "prefix",
                "regex captions",
                "clean tags",
                "trigger word",
                "编辑描述",
            ],
            is_output_node=True,
            inputs=[
                TrainDataset.Input("dataset", tooltip="From Load Dataset or Caption Images."),
                io.String.Input(
                    "prefix",
                    default=_E.prefix,
                    tooltip="Put before each caption unless it begins so: {trigger}, or a photo of. May hold"
                    " {trigger}, {class} and {filename}.",
                ),
                io.String.Input(
                    "suffix", default=_E.suffix, tooltip="Put behind each caption unless it ends so."
                ),
                io.String.Input(
                    "replacements",
                    default=_E.replacements,
                    multiline=True,
                    tooltip="Lines of: find => replacement. Nothing behind the arrow takes the text away."
                    " They are made in order, before all other changes.",
                ),
                io.String.Input(
                    "class_word",
                    default=_E.class_word,
                    tooltip="This word becomes the trigger wherever it stands: a dog on a sofa, a ohwx on a"
                    " sofa.",
                ),
                io.String.Input(
                    "trigger", default=_E.trigger, tooltip="Empty: the one that Caption Images was told."
                ),
                io.Int.Input(
                    "min_count",
                    default=_E.min_count,
                    min=1,
                    max=100_000,
                    tooltip="Tags that fewer pictures have are dropped; a tag is what is between commas.",
                ),
                io.Boolean.Input(
                    "regex",
                    default=_E.regex,
                    optional=True,
                    advanced=True,
                    tooltip=r"What is to be found is a regular expression; \1 in the replacement is its first"
                    " bracket.",
                ),
                WRITE_SIDECARS,
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
        prefix: str,
        suffix: str,
        replacements: str,
        class_word: str,
        trigger: str,
        min_count: int,
        regex: bool = _E.regex,
        write_sidecars: str = "no",
    ) -> io.NodeOutput:
        edits = Edits(
            prefix=prefix,
            suffix=suffix,
            replacements=replacements,
            regex=regex,
            class_word=class_word,
            trigger=trigger,
            min_count=min_count,
        )
        done = edited(dataset, edits)
        before = {r.path for r in dataset.records if r.caption.strip()}
        emptied = [r.name for r in done.records if not r.caption.strip() and r.path in before]
        notes = [f"left without a caption: {shortened(emptied)}"] if emptied else []
        changed = sum(a.caption != b.caption for a, b in zip(dataset.records, done.records, strict=True))
        return captions_out(done, write_sidecars, [f"{changed} of {len(done)} captions changed", *notes])
