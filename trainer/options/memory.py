"""Train Memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import check_choice, check_range, demand

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
FITS = ("auto", "manual")
AS_LOADED = "as loaded"
BASE_PRECISIONS = (AS_LOADED, "fp8", "int8")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    checkpointing: int = 0
    """Gradient checkpointing: 0 off, 1 every block, n every n-th block."""
    streamed: float = 0.0
    """Share of the blocks that stay in host memory and come to the device for their turn; checkpointed."""
    precision: str = "auto"
    """What the network computes in; "auto" is what ComfyUI chose for it."""
    compile: bool = False
    """torch.compile for each block: slower start, faster steps."""
    fit: str = "auto"
    """auto: checkpointing, streamed, base_precision and offload_activations are chosen by what fits
    (`memory.plan`); manual: they are taken as they are."""
    base_precision: str = AS_LOADED
    """What the frozen weights of the blocks are held in for the run; the model itself stays what it is."""
    offload_activations: bool = False
    """What checkpointed blocks keep until their recomputation lies in host memory."""

    def __post_init__(self) -> None:
        check_range(self, 0, math.inf, "checkpointing", hint="0: off")
        check_range(self, 0, 1, "streamed", hint="0: the whole model is on the device")
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("fit", self.fit, FITS)
        check_choice("base_precision", self.base_precision, BASE_PRECISIONS)
        kept = self.checkpointing or self.streamed or self.fit != "manual" or not self.offload_activations
        demand(
            bool(kept),
            "offload_activations is True but checkpointing and streamed are 0; set checkpointing to 1, for"
            " inputs of checkpointed blocks are what lies in host memory",
        )
