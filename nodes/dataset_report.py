"""DatasetReport: what is in a dataset, as a picture and as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..trainer.data.report import report
from ..trainer.host.token_count import token_count
from ..trainer.pictures.dataset_report import dataset_picture
from .sockets import CATEGORY, TrainDataset

if TYPE_CHECKING:
    from ..trainer.data.records import Dataset


class DatasetReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DatasetReport",
            display_name="Dataset Report",
            category=CATEGORY,
            description="Counts pictures, sizes and words of a dataset, and names what should be looked at.",
            search_aliases=["dataset statistics", "tag frequency", "duplicates", "数据集报告"],
            is_output_node=True,
            inputs=[
                TrainDataset.Input("dataset", tooltip="From Load Dataset, Join Datasets or Caption Images."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Captions are then counted in the tokens of this text encoder.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Roles, and sizes with pictures of each."),
                io.String.Output(display_name="report", tooltip="Markdown."),
            ],
        )

    @classmethod
    def execute(cls, dataset: Dataset, clip: Any = None) -> io.NodeOutput:
        text = report(dataset, None if clip is None else token_count(clip))
        picture = dataset_picture(dataset)
        return io.NodeOutput(picture, text, ui=ui.PreviewImage(picture).as_dict() | {"text": [text]})
