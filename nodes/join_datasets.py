"""JoinDatasets: several datasets as one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..trainer.data.joining import join
from ..trainer.data.report import overview
from ..trainer.errors import ConfigError
from ..trainer.pictures.contact_sheet import contact_sheet
from .sockets import CATEGORY, TrainDataset

if TYPE_CHECKING:
    from ..trainer.data.records import Dataset

LETTERS = "abcdef"


class JoinDatasets(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JoinDatasets",
            display_name="Join Datasets",
            category=CATEGORY,
            description="Trains on several datasets at once, each at its own resolution and with its own"
            " repeats.",
            search_aliases=["merge datasets", "combine datasets", "合并数据集"],
            is_output_node=True,
            inputs=[
                *(
                    TrainDataset.Input(
                        f"dataset_{letter}",
                        optional=letter != "a",
                        tooltip="From Load Dataset, Caption Images or another Join Datasets."
                        + (" Previews have its resolution." if letter == "a" else ""),
                    )
                    for letter in LETTERS
                ),
                io.String.Input(
                    "weights",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Factors on the loss, one for each connected dataset: 1, 0.5. Empty: 1.",
                ),
                io.String.Input(
                    "repeats",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Factors on the repeats, one for each connected dataset: 1, 10. Empty: 1.",
                ),
            ],
            outputs=[
                TrainDataset.Output(display_name="dataset", tooltip="For Caption Images or Train LoRA."),
                io.Image.Output(display_name="preview", tooltip="Contact sheet, as of Load Dataset."),
                io.Int.Output(display_name="count", tooltip="How many pictures there are."),
            ],
        )

    @classmethod
    def execute(cls, weights: str = "", repeats: str = "", **datasets: Dataset | None) -> io.NodeOutput:
        given = [d for letter in LETTERS if (d := datasets.get(f"dataset_{letter}")) is not None]
        factors = [float(p) for p in _parts("weights", weights, r"\d*\.?\d+|\d+\.", "1, 0.5")]
        if any(not 0 < f <= 1000 for f in factors):
            raise ConfigError(f"weights is {weights!r}; use numbers above 0 and up to 1000")
        times = [int(p) for p in _parts("repeats", repeats, r"\d{1,4}", "1, 10")]
        if any(not 1 <= t <= 1000 for t in times):
            raise ConfigError(f"repeats is {repeats!r}; use whole numbers from 1 to 1000")
        dataset = join(given, weights=factors, repeats=times)
        sheet = contact_sheet(dataset)
        shown = ui.PreviewImage(sheet).as_dict() | {"text": [overview(dataset)]}
        return io.NodeOutput(dataset, sheet, len(dataset), ui=shown)


def _parts(name: str, text: str, pattern: str, example: str) -> list[str]:
    parts = [p for p in re.split(r"[\s,，;]+", text) if p]
    if odd := [p for p in parts if not re.fullmatch(pattern, p, re.ASCII)]:
        raise ConfigError(f"{name}: {odd[0]!r} is no number that fits; write for example {example}")
    return parts
