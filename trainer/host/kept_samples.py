"""The cache of latents and conditions below ComfyUI's output folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..data.store import DEFAULT_LIMIT, GB, Store
from ..errors import ConfigError
from ..events import Emit
from . import paths

LIMIT = "IN_GRAPH_LORA_CACHE_GB"
"""Environment variable: gigabytes that the cache may take; 0 keeps everything in memory."""


@contextmanager
def kept(emit: Emit) -> Iterator[Store]:
    """The store of a run, which holds what it uses for the length of the block."""
    store = Store(paths.cache_directory(), emit, limit())
    try:
        yield store
    finally:
        store.release()


def limit() -> int:
    """Bytes."""
    text = os.environ.get(LIMIT, "")
    try:
        gigabytes = float(text) if text.strip() else DEFAULT_LIMIT / GB
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e6:
        raise ConfigError(
            f"{LIMIT} is {text!r}; set it to the gigabytes that the cache may take, for example 20"
        )
    return int(gigabytes * GB)
