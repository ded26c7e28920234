"""What to say to someone whose run does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..config import AS_LOADED, TrainConfig


@contextmanager
def explained_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Out of memory keeps its type, by which ComfyUI knows it, and gets the next lever to pull."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"{out_of_memory_advice(config)} ({error})") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU allocator's words
            raise
        raise torch.OutOfMemoryError(f"{out_of_memory_advice(config)} ({error})") from error


def out_of_memory_advice(config: TrainConfig) -> str:
    """One sentence that names the next lever."""
    size, accumulation = config.data.batch_size, config.optimizer.accumulation
    if size > 1:
        lever = (
            f"set batch_size to {size // 2} and accumulation to {accumulation * 2} (Train Optimizer),"
            " which learns the same"
        )
    elif config.memory.fit == "auto":
        lever = f"lower the resolution in Load Dataset (it is {config.data.resolution}) or the rank"
    elif config.memory.checkpointing != 1:
        lever = "set checkpointing to 1 (Train Memory)"
    elif config.memory.streamed < 1:
        lever = f"set streamed to {0.5 if config.memory.streamed < 0.5 else 1} (Train Memory)"
    elif config.memory.base_precision == AS_LOADED:
        lever = "set base_precision to int8 (Train Memory)"
    else:
        lever = f"lower the resolution in Load Dataset (it is {config.data.resolution}) or the rank"
    return f"training ran out of memory: {lever}; the model on the canvas is unchanged"
