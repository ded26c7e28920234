"""One process of several: what it has to have for itself on a machine that it shares with the others."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def started() -> int:
    """How many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def place() -> int:
    """Among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def own_place(options: Sequence[str]) -> Iterator[list[str]]:
    """ComfyUI's options of this process: a temporary folder and a database of its own."""
    if not place():
        yield [*options]
        return
    folder = tempfile.mkdtemp(prefix="in-graph-lora-")
    try:
        # ComfyUI locks its database, and clears its temporary folder when it starts.
        yield [*options, "--temp-directory", folder, "--database-url", "sqlite:///:memory:"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def visible_devices() -> tuple[str, list[str]]:
    """Environment variable that says which GPUs may be used, and what it says; empty where all may."""
    name = "HIP_VISIBLE_DEVICES" if os.environ.get("HIP_VISIBLE_DEVICES") else "CUDA_VISIBLE_DEVICES"
    return name, [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]


def take_device(options: Sequence[str]) -> None:
    """Show this process one GPU, before torch is imported: ComfyUI and NCCL take the first that they see.

    Raises JobError where there are fewer than processes.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1 or "--cpu" in options:
        return
    from in_graph_lora.trainer.errors import JobError

    name, visible = visible_devices()
    devices = visible or [str(i) for i in range(place() + 1)]
    if len(devices) <= place():
        raise JobError(
            f"there are {os.environ['LOCAL_WORLD_SIZE']} processes for the {len(devices)} devices of {name}"
            f" ({','.join(visible)}); start one for each"
        )
    os.environ[name] = devices[place()]
