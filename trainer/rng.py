"""Every random draw of a run comes from a generator that is named by (seed, purpose, step)."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator whose state depends on nothing but its arguments, so a resumed run draws the same."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
