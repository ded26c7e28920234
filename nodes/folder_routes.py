"""HTTP endpoint of Load Dataset's list of folders: GET /in_graph_lora/folders.

It lists ComfyUI's input folder and takes nothing from the client.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ..trainer.data.folders import folders_below
from ..trainer.host.paths import input_directory
from ..trainer.host.progress import add_route
from ..trainer.text import readable


async def folders(request: web.Request) -> web.Response:
    """{"folders": [{name, pictures, changed}], "more": whether the list was cut}."""

    def read() -> dict[str, Any]:
        found, more = folders_below(input_directory())
        # A name that is no text cannot be typed into the node either.
        usable = [asdict(f) for f in found if readable(f.name) == f.name]
        return {"folders": usable, "more": more}

    return web.json_response(await asyncio.to_thread(read))


def register() -> None:
    add_route("GET", "/in_graph_lora/folders", folders)
