"""What nodes with captions have in common: files beside the pictures, the texts on the node, the editor."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..trainer.data.caption_desk import Desks
from ..trainer.data.caption_files import write_captions
from ..trainer.host.paths import graph_images_directory
from ..trainer.text import garbled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..trainer.data.records import Dataset

log = logging.getLogger(__name__)

DESKS = Desks()
"""Where the page edits captions."""
MAX_SHOWN = 200
"""Captions on the node; the list output has them all."""

WRITE_SIDECARS = io.Combo.Input(
    "write_sidecars",
    options=["no", "new", "overwrite"],
    default="no",
    optional=True,
    advanced=True,
    tooltip="Text files beside the pictures. new: where there is none yet. overwrite: all; what a file held"
    " before is kept once in name.txt.bak.",
)


def captions_out(dataset: Dataset, write_sidecars: str, notes: Sequence[str] = ()) -> io.NodeOutput:
    """(dataset, captions), with what the user must know and the captions on the node."""
    told = list(notes)
    if write_sidecars != "no":
        overwrite = write_sidecars == "overwrite"
        told += write_captions(dataset, overwrite=overwrite, leave=graph_images_directory()).lines
    if odd := garbled(dataset.texts):
        log.warning("%s", odd)
        told.append(odd)
    if (more := len(dataset) - MAX_SHOWN) > 0:
        told.append(f"the first {MAX_SHOWN} captions; there are {more} more")
    lines = [f"{r.name}: {r.caption}" for r in dataset.records[:MAX_SHOWN]]
    # told: how many of the lines are ours, the page translates no others.
    shown = {"text": [*told, *lines], "told": [len(told)], "captions": [DESKS.add(dataset)]}
    return io.NodeOutput(dataset, [r.caption for r in dataset.records], ui=shown)
