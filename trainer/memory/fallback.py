"""After out of memory: what is left of the step is given back, and the next levers are found."""

from __future__ import annotations

import gc
import traceback

from ..config import MemoryConfig
from .plan import Measured, leaner

MOST = 3
"""How often a run goes on after it ran out of memory."""


class Fallback:
    def __init__(self, measured: Measured | None) -> None:
        """measured: the step that was tried out, if there was one."""
        self.measured = measured
        self.left = MOST

    def next(self, memory: MemoryConfig) -> MemoryConfig | None:
        """The levers to go on with; None when they are the user's, or none are left."""
        if memory.fit != "auto" or not self.left:
            return None
        self.left -= 1
        return leaner(self.measured, memory, last=not self.left)


def give_back(error: BaseException) -> None:
    """Lets go of whatever an error's frames, and those of its causes, still hold on the device.

    The host empties the device's cache before it lends the models again.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    gc.collect()
