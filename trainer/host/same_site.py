"""Requests that a page of another site makes the browser send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from comfy.cli_args import args

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def same_site(handler: Handler) -> Handler:
    """Refuse with 403 what ComfyUI refuses by itself, also where --enable-cors-header switches that off.

    The one origin that this flag may name is let in; `*` names none.
    """
    from server import create_origin_only_middleware  # not without a server: it imports all of ComfyUI

    check = create_origin_only_middleware()

    async def guarded(request: web.Request) -> web.StreamResponse:
        named = request.headers.get("Origin")
        if named is not None and named == args.enable_cors_header:
            return await handler(request)
        return await check(request, handler)

    return guarded
