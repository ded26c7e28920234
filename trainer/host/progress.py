"""Progress to the page, and the interrupt from it."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image

from .same_site import same_site

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
        packed = ("JPEG", preview, max(preview.size)) if preview is not None else None
        self._bar.update_absolute(done, total, packed)

    def text(self, text: str) -> None:
        if (server := _server()) is not None and self.node_id is not None:
            server.send_progress_text(text, self.node_id)

    def send(self, data: dict[str, Any]) -> None:
        if (server := _server()) is not None:
            server.send_sync(PROGRESS_EVENT, {"node_id": self.node_id, **data}, server.client_id)


def add_route(method: str, path: str, handler: Any) -> None:
    """An endpoint of ComfyUI's web server, for its own pages; nothing where there is no server."""
    if (server := _server()) is not None:
        server.routes.route(method, path)(same_site(handler))


def files_changed() -> None:
    """Tells every open page that there are new LoRA files or runs, so that its lists are filled again."""
    if (server := _server()) is not None:
        server.send_sync(FILES_EVENT, {}, None)


def _server() -> Any:
    # There is none when the nodes run without ComfyUI's web server, in scripts and tests.
    from server import PromptServer

    return getattr(PromptServer, "instance", None)
