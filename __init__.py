"""In-Graph LoRA: train LoRAs inside the ComfyUI graph, on the model that is already loaded.

ComfyUI imports this file at start-up, so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"

__version__ = "0.1.0"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> ComfyExtension:
    """Called once by ComfyUI; returns the extension that lists the nodes."""
    from .nodes import InGraphLoraExtension

    return InGraphLoraExtension()
