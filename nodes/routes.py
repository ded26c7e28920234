"""HTTP endpoints of the page. They answer below /in_graph_lora and /api/in_graph_lora.

What a client sends is compared with ids that exist; it is never used as a path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ..trainer.errors import StorageError
from ..trainer.host.active import find, go_on, paused
from ..trainer.host.paths import run_path
from ..trainer.host.progress import add_route
from .canvas import Place, shown_at

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def end(wish: Any) -> Handler:
    """POST: end the training of a node after its step and keep what there is.

    ?prompt=ID: only if the node trains for that prompt.
    """

    async def handler(request: web.Request) -> web.Response:
        node_id = request.match_info["node_id"]
        training = find(node_id, request.query.get("prompt", ""))
        if training is None:
            return _refused(f"node {node_id} trains nothing at the moment")
        training.end(wish)
        return web.json_response({"ending": node_id})

    return handler


async def resume(request: web.Request) -> web.Response:
    """POST ?run=<name>/<run>: the paused run goes on when its graph runs again."""
    try:
        run = run_path(request.query.get("run", ""))
    except StorageError as error:
        return _refused(str(error))
    return web.json_response({"paused": go_on(run)})


async def training(request: web.Request) -> web.Response:
    """GET ?workflow=ID&node=ID: the run that the node shows, whole; `{}` where it shows none.

    &prompt=ID: also when it trains for this prompt, which came from a workflow without an id.
    """
    query = request.query
    place = Place(workflow=query.get("workflow", ""), node=query.get("node", ""))
    return web.json_response(await asyncio.to_thread(_shown, place, query.get("prompt", "")))


def _shown(place: Place, prompt: str) -> dict[str, Any]:
    from ..trainer.runs.folder import RunFolder
    from ..trainer.runs.history import history
    from .training_report import run_name

    now = find(place.node)
    status = now.status if now else {}
    same = place.workflow and status.get("workflow") == place.workflow
    if not same and not (prompt and status.get("prompt_id") == prompt):
        status = {}
    if status and not status["run"]:
        return status  # it is still preparing
    found = (run_path(status["run"]), status) if status else shown_at(place)
    if found is None:
        return {}
    run, last = found
    folder = RunFolder(run)
    told = {name: str(last.get(name, "")) for name in ("state", "message", "plan")}
    if told["state"] == "running":
        told["state"] = "cut off"  # the process was killed, unless the training is alive
    if told["state"] == "paused" and paused(run) is None:
        told["state"] = "stopped"
    whole = history(folder)
    if last.get("notices") and not status:
        whole["notices"] = str(last["notices"]).splitlines()
    record = folder.record()
    done = record.finished if record else None
    step = max((point[0] for point in whole["points"]), default=0)
    config = folder.config()
    base = {
        "name": run.parent.name,
        "run": run_name(run),
        "step": step,
        "steps": done.asked if done else config.get("steps", step),
        "lora": done.lora if done else "",
        **told,
    }
    return {**base, **whole, **status}


async def preview(request: web.Request) -> web.StreamResponse:
    """GET ?run=<name>/<run>&step=N&prompt=I: a preview picture of a run."""
    from ..trainer.runs.folder import RunFolder
    from ..trainer.runs.history import pictures

    try:
        folder = RunFolder(run_path(request.query.get("run", "")))
    except StorageError as error:
        return _refused(str(error))
    files = await asyncio.to_thread(lambda: pictures(folder).files)
    step, prompt = _count(request.query.get("step")), _count(request.query.get("prompt"))
    if step not in files or prompt is None or prompt >= len(files[step]):
        return _refused("there is no such preview in this run")
    return web.FileResponse(files[step][prompt], headers={"Cache-Control": "no-cache"})


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else None


def _refused(error: str) -> web.Response:
    return web.json_response({"error": error}, status=404)


def register() -> None:
    add_route("POST", "/in_graph_lora/stop/{node_id}", end("stop"))
    add_route("POST", "/in_graph_lora/pause/{node_id}", end("pause"))
    add_route("POST", "/in_graph_lora/continue", resume)
    add_route("GET", "/in_graph_lora/training", training)
    add_route("GET", "/in_graph_lora/preview", preview)
