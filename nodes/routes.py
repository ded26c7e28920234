"""HTTP endpoints of the page. They answer below /in_graph_lora and /api/in_graph_lora."""

from __future__ import annotations

from aiohttp import web

from ..trainer.host.active import find
from ..trainer.host.progress import add_route


async def stop(request: web.Request) -> web.Response:
    """POST: end the training of a node after its step and keep what there is."""
    node_id = request.match_info["node_id"]
    training = find(node_id)
    if training is None:
        return _trains_nothing(node_id)
    training.request_stop()
    return web.json_response({"stopping": node_id})


async def progress(request: web.Request) -> web.Response:
    """GET: what the training of a node has sent so far, for a page that was opened after its start.

    ?since=N leaves out what came up to step N.
    """
    node_id = request.match_info["node_id"]
    training = find(node_id)
    if training is None:
        return _trains_nothing(node_id)
    since = request.query.get("since", "")
    history = training.history(int(since) if since.isdecimal() and len(since) < 10 else -1)
    return web.Response(text=f'{{"progress": {history}}}', content_type="application/json")


def _trains_nothing(node_id: str) -> web.Response:
    return web.json_response({"error": f"node {node_id} trains nothing at the moment"}, status=404)


def register() -> None:
    add_route("POST", "/in_graph_lora/stop/{node_id}", stop)
    add_route("GET", "/in_graph_lora/progress/{node_id}", progress)
