"""HTTP endpoints of the Runs panel, of Load Run and of scripts/remote.py, below /in_graph_lora/runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from .. import __version__
from ..trainer.errors import StorageError
from ..trainer.host import paths
from ..trainer.host.progress import add_route, files_changed
from .run_settings import node_settings

MOST = 100
"""Runs in one answer."""


async def page(request: web.Request) -> web.Response:
    """GET ?offset=0&limit=50&with_lora=0: summaries, newest first, the number of runs and their bytes."""
    query = request.query
    offset, limit = _count(query.get("offset", "0"), 10**9), _count(query.get("limit", "50"), MOST)
    with_lora = _count(query.get("with_lora", "0"), 1)
    if offset is None or not limit or with_lora is None:
        text = f"choose offset 0 or more, limit 1 to {MOST}, with_lora 0 or 1"
        return web.json_response({"error": text}, status=400)

    def read() -> dict[str, Any]:
        runs = paths.runs()
        found = runs.page(offset, limit, with_lora=bool(with_lora))
        return found if offset else {**found, "bytes": runs.size()}

    return await _answer(read)


async def detail(request: web.Request) -> web.Response:
    """GET /{name}/{run}: settings, curve and checkpoints of a run, and the widgets that made it."""

    def read() -> dict[str, Any]:
        found = paths.runs().detail(_run(request))
        return {**found, "widgets": node_settings(found["config"])}

    return await _answer(read)


async def files(request: web.Request) -> web.Response:
    """GET /{name}/{run}/files: {files: [{name, bytes, changed}]} of a run, for who fetches it."""

    def read() -> dict[str, Any]:
        found = paths.runs().files(_run(request)).items()
        stats = [(name, path.stat()) for name, path in found if path.exists()]
        return {"files": [{"name": n, "bytes": s.st_size, "changed": float(s.st_mtime)} for n, s in stats]}

    return await _answer(read)


async def file(request: web.Request) -> web.StreamResponse:
    """GET /{name}/{run}/file?name=N: one file of those that `files` lists."""
    try:
        found = await asyncio.to_thread(lambda: paths.runs().files(_run(request)))
    except StorageError as error:
        return web.json_response({"error": str(error)}, status=404)
    path = found.get(request.query.get("name", ""))
    if path is None:
        return web.json_response({"error": "there is no such file in this run"}, status=404)
    headers = {"Cache-Control": "no-store", "Content-Type": "application/octet-stream"}
    return web.FileResponse(path, headers={**headers, "Content-Disposition": "attachment"})


async def jobs(request: web.Request) -> web.Response:
    """GET /in_graph_lora/jobs: {jobs} in output/in-graph-lora/jobs, and how far a queue is with each."""
    del request

    def read() -> dict[str, Any]:
        from ..trainer.job_queue import listed

        return {"jobs": listed(paths.jobs_directory())}

    return await _answer(read)


async def version(request: web.Request) -> web.Response:
    """GET /in_graph_lora/version: {version} of the pack, for who sends it work."""
    del request
    return web.json_response({"version": __version__})


async def delete(request: web.Request) -> web.Response:
    """DELETE /{name}/{run}: the run's folder goes; 409 while it is trained."""
    if request.can_read_body:
        return web.json_response({"error": "a request to delete a run has no content"}, status=400)

    def remove() -> dict[str, Any]:
        paths.runs().delete(_run(request))
        files_changed()
        return {"deleted": _run(request)}

    return await _answer(remove)


def _run(request: web.Request) -> str:
    return f"{request.match_info['name']}/{request.match_info['run']}"


def _count(text: str, most: int) -> int | None:
    known = text.isascii() and text.isdecimal() and len(text) < 11 and int(text) <= most
    return int(text) if known else None


async def _answer(work: Callable[[], dict[str, Any]]) -> web.Response:
    """Reads the disk in a thread: the server's loop goes on."""
    try:
        return web.json_response(await asyncio.to_thread(work))
    except StorageError as error:
        text = str(error)
        return web.json_response({"error": text}, status=404 if text.startswith("there is no") else 409)


def register() -> None:
    add_route("GET", "/in_graph_lora/runs", page)
    add_route("GET", "/in_graph_lora/runs/{name}/{run}", detail)
    add_route("GET", "/in_graph_lora/runs/{name}/{run}/files", files)
    add_route("GET", "/in_graph_lora/runs/{name}/{run}/file", file)
    add_route("GET", "/in_graph_lora/version", version)
    add_route("GET", "/in_graph_lora/jobs", jobs)
    add_route("DELETE", "/in_graph_lora/runs/{name}/{run}", delete)
