"""What to say to someone whose run does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..config import AS_LOADED, MemoryConfig, TrainConfig

_OF_ALLOCATORS = ("can't allocate memory", "MPS backend out of memory")
"""The words of those that have no error of their own for it: the CPU's and Apple's."""


@contextmanager
def explained_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Out of memory keeps its type, by which ComfyUI knows it, and gets the next lever to pull."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"{out_of_memory_advice(config)} ({error})") from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _OF_ALLOCATORS):
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


def without_overlap(device: torch.device, memory: MemoryConfig) -> list[str]:
    """What is bound to CUDA's streams (AMD's too) and goes without them elsewhere."""
    used = [name for name in ("streamed", "offload_activations") if getattr(memory, name)]
    if device.type in ("cpu", "cuda") or not used:
        return []
    return [
        f"on {device.type} devices {' and '.join(used)} (Train Memory) copies without pinned memory and while"
        " the device waits, so steps take longer than on CUDA's"
    ]
