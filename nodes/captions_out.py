"""What nodes that write captions have in common: files beside the pictures, and the texts on the node."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..trainer.data.caption_files import write_captions
from ..trainer.host.paths import graph_images_directory
from ..trainer.text import garbled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..trainer.data.records import Dataset

log = logging.getLogger(__name__)

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
    lines = [f"{r.name}: {r.caption}" for r in dataset.records[:MAX_SHOWN]]
    if (more := len(dataset) - MAX_SHOWN) > 0:
        lines.append(f"and {more} more")
    return io.NodeOutput(dataset, [r.caption for r in dataset.records], ui={"text": [*told, *lines]})
