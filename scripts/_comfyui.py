"""ComfyUI without its server: its own start, nodes and executor, in this process."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Told = Callable[[str, Mapping[str, Any]], None]


class GraphError(Exception):
    """What ComfyUI or a node says is wrong with a graph."""


class Interrupted(BaseException):
    """By Ctrl-C, or told to end. What was trained is kept."""


def folder(wish: Path | None, pack: Path) -> Path:
    """ComfyUI's: as wished, else the one that the pack is installed in. Raises GraphError."""
    found = (wish or pack.parent.parent).resolve()
    if not (found / "main.py").exists() or not (found / "comfy").is_dir():
        raise GraphError(f"{found} is no ComfyUI; give its folder, the one with main.py, by --comfyui")
    return found


class Headless:
    """`options` are ComfyUI's own, such as --cpu. Its packs of nodes are loaded as always."""

    def __init__(self, comfyui: Path, options: Sequence[str]) -> None:
        # ComfyUI reads its options when it is first imported. The script's own folder must not be searched.
        sys.path[0] = str(comfyui)
        sys.argv = ["main.py", *options]
        import main  # pyright: ignore[reportMissingImports]

        _, self.server, _ = main.start_comfyui()

    def version(self) -> str:
        import comfyui_version  # pyright: ignore[reportMissingImports]

        return comfyui_version.__version__

    def torch_version(self) -> str:
        import torch

        return torch.__version__

    def nodes(self) -> Mapping[str, Any]:
        import nodes  # pyright: ignore[reportMissingImports]

        return nodes.NODE_CLASS_MAPPINGS

    def run(self, graph: Mapping[str, Any], node: str, extra: Mapping[str, Any], told: Told) -> None:
        """Runs `node` and what it needs. told: gets every message that a page would get.

        Raises GraphError, and Interrupted after Ctrl-C or SIGTERM.
        """
        import comfy.model_management as mm
        import execution  # pyright: ignore[reportMissingImports]

        # There is no loop to send them on.
        self.server.send_sync = lambda event, data, sid=None: told(str(event), data)
        prompt_id = uuid.uuid4().hex
        valid, error, _, errors = asyncio.run(execution.validate_prompt(prompt_id, graph, [node]))
        if not valid:
            raise GraphError(_explained(error, errors))
        signals = signal.SIGINT, signal.SIGTERM  # launchers and schedulers send the second
        before = [signal.signal(s, lambda *_: mm.interrupt_current_processing()) for s in signals]
        queue = self.server.prompt_queue  # ComfyUI's own thread works on it
        # ComfyUI says what a node has made only where there is a client.
        more = {"extra_pnginfo": dict(extra), "client_id": prompt_id}
        queue.put((0, prompt_id, graph, more, [node], {}))
        try:
            while not (done := queue.get_history(prompt_id=prompt_id)):
                time.sleep(0.1)
        finally:
            for s, handler in zip(signals, before, strict=True):
                signal.signal(s, handler)
        status = done[prompt_id]["status"]
        if status["completed"]:
            return
        ends = dict(status["messages"])
        if "execution_interrupted" in ends:
            raise Interrupted
        end = ends.get("execution_error", {})
        node_type, message = end.get("node_type", "a node"), end.get("exception_message", "failed")
        raise GraphError(f"{node_type}: {message.strip()}")


def _explained(error: Mapping[str, Any], errors: Mapping[str, Any]) -> str:
    lines = [f"{error.get('message', 'the graph cannot run')} {error.get('details', '')}".strip()]
    for node, found in errors.items():
        for one in found.get("errors", ()):
            lines.append(f"node {node} ({found.get('class_type')}): {one['message']}: {one['details']}")
    return "\n".join(lines)
