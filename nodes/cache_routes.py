"""What is kept of encoded pictures, for the Runs panel: /in_graph_lora/cache."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ..trainer.host.progress import add_route


async def show(request: web.Request) -> web.Response:
    """GET: how many entries there are, and their bytes."""
    return web.json_response(await asyncio.to_thread(_usage))


async def clear(request: web.Request) -> web.Response:
    """DELETE: all entries go; `left` could not be deleted. A run encodes anew what it needs."""
    if request.can_read_body:
        return web.json_response({"error": "a request to clear the cache has no content"}, status=400)
    return web.json_response(await asyncio.to_thread(_clear))


def _usage() -> dict[str, Any]:
    from ..trainer.data.store import usage
    from ..trainer.host.paths import cache_directory

    entries, size = usage(cache_directory())
    return {"entries": entries, "bytes": size}


def _clear() -> dict[str, Any]:
    from ..trainer.data.store import clear
    from ..trainer.host.paths import cache_directory

    entries, size = clear(cache_directory())
    return {"deleted": entries, "bytes": size, "left": _usage()["entries"]}


def register() -> None:
    add_route("GET", "/in_graph_lora/cache", show)
    add_route("DELETE", "/in_graph_lora/cache", clear)
