"""HTTP endpoints of the captions on the canvas, below /in_graph_lora/captions.

A request names a dataset that a node has given in this process, and the number of a picture in it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ..trainer.errors import DatasetError, StorageError
from ..trainer.host.progress import add_route
from .captions_out import DESKS

MAX_BODY = 8 * 2**20
MAX_EDITS = 20_000
_decoding = asyncio.Semaphore(2)


async def captions(request: web.Request) -> web.Response:
    """GET /{dataset}: name, caption and, where it cannot be edited, the reason, of each picture in order."""
    return await _answer(lambda: {"pictures": DESKS.find(request.match_info["dataset"]).pictures()})


async def save(request: web.Request) -> web.Response:
    """POST /{dataset} [{number, was, caption}, …]: write them beside their pictures."""
    if request.content_type != "application/json":
        return _refused("send the edits as application/json", 415)
    body = bytearray()
    async for chunk in request.content.iter_chunked(65536):
        body += chunk
        if len(body) > MAX_BODY:
            return _refused(f"more than {MAX_BODY} bytes of edits; send fewer at a time", 413)

    def work() -> dict[str, Any]:
        desk = DESKS.find(request.match_info["dataset"])
        given = json.loads(bytes(body))
        if not isinstance(given, list) or len(given) > MAX_EDITS:
            raise ValueError(f"send a list of at most {MAX_EDITS} edits")
        if not all(isinstance(edit, dict) and edit.keys() == {"number", "was", "caption"} for edit in given):
            raise ValueError("an edit has a number, a text that was, and a caption")
        return desk.save([desk.edit(**edit) for edit in given])

    return await _answer(work)


async def thumbnail(request: web.Request) -> web.Response:
    """GET /{dataset}/{number}/thumbnail: a small JPEG."""
    number = request.match_info["number"]
    if not (number.isascii() and number.isdecimal() and len(number) < 8):
        return _refused("there is no such picture in the dataset; open the captions again", 404)
    try:
        async with _decoding:  # large pictures need memory
            data = await asyncio.to_thread(DESKS.thumbnail, request.match_info["dataset"], int(number))
    except (StorageError, DatasetError) as error:
        return _refused(str(error), 404)
    headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=data, content_type="image/jpeg", headers=headers)


def _refused(error: str, status: int) -> web.Response:
    return web.json_response({"error": error}, status=status)


async def _answer(work: Callable[[], dict[str, Any]]) -> web.Response:
    """Reads and writes the disk in a thread: the server's loop goes on."""
    try:
        return web.json_response(await asyncio.to_thread(work))
    except StorageError as error:
        return _refused(str(error), 404)
    except (ValueError, RecursionError) as error:
        return _refused(str(error), 400)


def register() -> None:
    add_route("GET", "/in_graph_lora/captions/{dataset}", captions)
    add_route("POST", "/in_graph_lora/captions/{dataset}", save)
    add_route("GET", "/in_graph_lora/captions/{dataset}/{number}/thumbnail", thumbnail)
