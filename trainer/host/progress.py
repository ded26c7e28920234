"""Progress to the page, and the interrupt from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import psutil
from PIL import Image

from ..devices import allocator

PROGRESS_EVENT = "in_graph_lora.progress"
FILES_EVENT = "in_graph_lora.files"


def check_interrupt() -> None:
    """Raises ComfyUI's interrupt when the user pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class NodeProgress:
    """The progress bar of a node, the text under it, and an event for the page's own code."""

    def __init__(self, node_id: str | None) -> None:
        self.node_id = node_id
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)

    def update(self, done: int, total: int, preview: Image.Image | None = None) -> None:
        """Raises ComfyUI's interrupt: for the thread of the prompt only."""
        packed = ("JPEG", preview, max(preview.size)) if preview is not None else None
        self._bar.update_absolute(done, total, packed)

    def text(self, text: str) -> None:
        if (server := _server()) is not None and self.node_id is not None:
            server.send_progress_text(text, self.node_id)

    def send(self, data: dict[str, Any]) -> None:
        """To every page: the same graph may be open in several. From any thread."""
        if (server := _server()) is not None:
            server.send_sync(PROGRESS_EVENT, {"node_id": self.node_id, **data})


class MemoryWatch:
    """Memory in use and its peak since the watch began: torch's on a GPU, the process's elsewhere. Bytes."""

    def __init__(self) -> None:
        self.device = comfy.model_management.get_torch_device()
        self._process = psutil.Process()
        self.peak = 0
        self._counts = allocator(self.device)
        if self._counts is not None:
            self._counts.reset_peak_memory_stats(self.device)
        self.now()

    def now(self) -> int:
        if self._counts is not None:
            # The plan's trial resets torch's own peak, so the highest that was seen is kept here.
            self.peak = max(self.peak, self._counts.max_memory_allocated(self.device))
            return self._counts.memory_allocated(self.device)
        used = self._process.memory_info().rss
        self.peak = max(self.peak, used)
        return used


def prompt_id() -> str:
    """Of the prompt that runs in this thread; "" outside of one."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return context.prompt_id if context else ""


def add_route(method: str, path: str, handler: Any) -> None:
    """An endpoint of ComfyUI's web server, for its own pages; nothing where there is no server."""
    if (server := _server()) is not None:
        from .same_site import same_site  # needs aiohttp, and training does not

        server.routes.route(method, path)(same_site(handler))


def files_changed() -> None:
    """Tells every open page that there are new LoRA files or runs, so that its lists are filled again."""
    if (server := _server()) is not None:
        server.send_sync(FILES_EVENT, {})


@contextmanager
def telling_of_files() -> Iterator[None]:
    """However the block ends: a training that is stopped or fails leaves files too."""
    try:
        yield
    finally:
        files_changed()


def _server() -> Any:
    # There is none when the nodes run without ComfyUI's web server, in scripts and tests.
    from server import PromptServer

    return getattr(PromptServer, "instance", None)
