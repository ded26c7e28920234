"""What torch spells differently for each kind of device: CUDA's (AMD's too), Intel's, Apple's and others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_COUNTS = ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats")


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if wait := getattr(_module(device), "synchronize", None):
        wait(*_where(device))


def allocator(device: torch.device) -> Any:
    """torch's functions that count its memory in bytes; None where it counts none, or not the peak."""
    module = _module(device)
    return module if all(hasattr(module, name) for name in _COUNTS) else None


@contextmanager
def random_kept(device: torch.device, enabled: bool = True) -> Iterator[None]:
    """torch's own generators of the CPU and of this device are afterwards as they were before."""
    module: Any = _module(device) if enabled else None
    knows = hasattr(module, "get_rng_state")
    state = module.get_rng_state(*_where(device)) if knows else None
    try:
        with torch.random.fork_rng(devices=[], enabled=enabled):
            yield
    finally:
        if state is not None:
            module.set_rng_state(state, *_where(device))


def _module(device: torch.device) -> Any:
    return None if device.type == "cpu" else getattr(torch, device.type, None)


def _where(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # Apple's are one
