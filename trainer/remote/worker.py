"""A ComfyUI elsewhere: what it has, what is sent to it, and what it tells."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from ..errors import RemoteError, shortened
from .work import TRAINER, Upload

Json = dict[str, Any]
Say = Callable[[str], None]

VERSION, RUNS = "/in_graph_lora/version", "/in_graph_lora/runs"
AWAY = (502, 503, 504)
"""What a proxy answers while the server behind it is away."""
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=120)
PAUSE = 2.0
"""Seconds between two tries."""
BLOCK = 1 << 18


class Lost(RemoteError):
    """The connection, not the work."""


class Worker:
    """`async with Worker(url, say) as worker:`. Raises RemoteError, Lost where trying again may help."""

    def __init__(
        self, url: str, say: Say, headers: Mapping[str, str] | None = None, patience: float = 600
    ) -> None:
        """patience: seconds that a connection may be lost."""
        url = url.strip().rstrip("/")
        self.url = url if "://" in url else f"http://{url}"
        if not self.url.startswith(("http://", "https://")):
            raise RemoteError(f"{url} is no address of a ComfyUI; write it as http://192.168.1.5:8188")
        self.id = str(uuid.uuid4())
        self.patience, self._say, self._headers = patience, say, dict(headers or {})
        self._lost_at: float | None = None

    async def __aenter__(self) -> Worker:
        self._http = aiohttp.ClientSession(timeout=TIMEOUT, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def patiently(self, work: Callable[[], Awaitable[Any]], *, forever: bool = False) -> Any:
        """The result of `work`, which is begun again while the connection is lost. forever: it may be lost
        any number of times, since work is done in between."""
        done = 0
        while True:
            try:
                return await work()
            except Lost as error:
                done += 1
                if self._lost_at is None:
                    self._lost_at = time.monotonic()
                    self._say(f"{error}; trying again for {self.patience / 60:.0f} min")
                too_often = not forever and done * PAUSE > self.patience
                if too_often or time.monotonic() - self._lost_at > self.patience:
                    raise RemoteError(
                        f"{error}; what it trains goes on there, and the same command follows it again"
                    ) from error
                await asyncio.sleep(PAUSE)

    def _answered(self) -> None:
        if self._lost_at is not None:
            self._lost_at = None
            self._say("connected again")

    # What it has.

    async def definitions(self, version: str) -> Json:
        """Of its nodes, by /object_info. version: of the pack here, "" for any."""
        info = await self.get("/object_info")
        if not isinstance(info, dict) or "KSampler" not in info:
            raise RemoteError(f"what answers at {self.url} is no ComfyUI; check the address and the port")
        if TRAINER not in info:
            raise RemoteError(
                f"the ComfyUI at {self.url} has no In-Graph LoRA; install the pack there and start it again"
            )
        said = await self.get(VERSION, {})
        theirs = said.get("version", "older") if isinstance(said, dict) else "older"
        if version and theirs != version:
            raise RemoteError(
                f"the ComfyUI at {self.url} has In-Graph LoRA {theirs} and this is {version}; bring the same"
                " version to both, or give --any-version"
            )
        return info

    async def has(self, upload: Upload) -> bool:
        """A file of this name and size; folders are named by content."""
        query = {"type": "input", "subfolder": upload.subfolder, "filename": upload.name}
        try:
            async with self._request("HEAD", "/view", params=query) as answer:
                told = answer.headers.get("Content-Length")
                return answer.status == 200 and told == str(upload.path.stat().st_size)
        except RemoteError as error:
            if isinstance(error, Lost):
                raise
            return False

    async def upload(self, upload: Upload) -> None:
        form = aiohttp.FormData(quote_fields=False)  # names stay what they are
        form.add_field("subfolder", upload.subfolder)
        form.add_field("type", "input")
        form.add_field("overwrite", "true")
        with upload.path.open("rb") as file:
            form.add_field("image", file, filename=upload.name)
            async with self._request("POST", "/upload/image", data=form) as answer:
                if answer.status == 413:
                    raise RemoteError(
                        f"{upload.path} is larger than the worker takes; start that ComfyUI with"
                        " --max-upload-size and the megabytes"
                    )
                if answer.status != 200:
                    raise RemoteError(f"{upload.path} was refused by the worker (HTTP {answer.status})")
                kept = await answer.json()
        if kept.get("name") != upload.name:
            raise RemoteError(f"{upload.path} was kept as {kept.get('name')!r} there; rename it here")

    # Its queue.

    async def same(self, graph: Json) -> str | None:
        """Id of a prompt with this graph that runs there or waits."""
        queue = await self.get("/queue")
        items = [*queue.get("queue_running", ()), *queue.get("queue_pending", ())]
        return next((item[1] for item in items if item[2] == graph), None)

    async def queue(self, prompt_id: str, graph: Json, extra: Json) -> None:
        """Once, also where it is asked for again because the answer was lost."""
        if await self.state(prompt_id) is not None:
            return
        body = {
            "prompt": graph,
            "prompt_id": prompt_id,
            "client_id": self.id,
            "extra_data": {"extra_pnginfo": extra},
        }
        async with self._request("POST", "/prompt", json=body) as answer:
            told = await _json(answer)
            if answer.status == 200 and not told.get("node_errors"):
                return
        if answer.status == 200:
            await self.cancel(prompt_id)  # it would run the rest without what has an error
        raise RemoteError(_refusal(told))

    async def state(self, prompt_id: str) -> Json | None:
        """{} while it waits or runs, its history when it is over, None where it is not known."""
        # In this order: a prompt goes from the queue to the history in one go.
        queue = await self.get("/queue")
        items = [*queue.get("queue_running", ()), *queue.get("queue_pending", ())]
        if any(item[1] == prompt_id for item in items):
            return {}
        return (await self.get(f"/history/{prompt_id}")).get(prompt_id)

    async def cancel(self, prompt_id: str) -> None:
        await self._post("/queue", {"delete": [prompt_id]})
        await self._post("/interrupt", {"prompt_id": prompt_id})

    async def events(self, every: float) -> AsyncGenerator[tuple[str, Json], None]:
        """(type, data) of each message; ("", {}) where there is none for `every` seconds. Ends by Lost."""
        try:
            async with self._http.ws_connect(
                f"{self.url}/ws?clientId={self.id}", heartbeat=20, max_msg_size=0
            ) as socket:
                self._answered()
                while True:
                    try:
                        message = await socket.receive(timeout=every)
                    except asyncio.TimeoutError:  # noqa: UP041  another class in Python 3.10
                        yield "", {}
                        continue
                    if message.type is aiohttp.WSMsgType.TEXT:
                        content = json.loads(message.data)
                        yield content.get("type", ""), content.get("data") or {}
                    elif message.type is not aiohttp.WSMsgType.BINARY:
                        raise Lost(f"the connection to {self.url} was lost")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Lost(f"the connection to {self.url} was lost ({error})") from error

    # Its runs.

    async def run_files(self, run: str) -> list[Json]:
        """{name, bytes, changed} of each file of a run; [] where it is not there."""
        told = await self.get(f"{RUNS}/{quote(run)}/files", {})
        files = told.get("files", []) if isinstance(told, dict) else []
        kinds = {"name": str, "bytes": int, "changed": float}
        if not all(isinstance(f, dict) and {k: type(v) for k, v in f.items()} == kinds for f in files):
            raise RemoteError(f"what {self.url} says of run {run} is no list of files; update the pack there")
        return files

    async def download(self, run: str, name: str, path: Path) -> None:
        """Into a new file."""
        query = {"name": name}
        async with self._request("GET", f"{RUNS}/{quote(run)}/file", params=query) as answer:
            if answer.status != 200:
                raise RemoteError(f"the worker no longer has {name} of run {run}")
            with path.open("wb") as file:
                async for block in answer.content.iter_chunked(BLOCK):
                    file.write(block)

    # HTTP.

    async def get(self, path: str, missing: Any = None) -> Any:
        """missing: what a 404 means, where it is no error."""
        async with self._request("GET", path) as answer:
            if answer.status == 404 and missing is not None:
                return missing
            if answer.status != 200:
                raise RemoteError(
                    f"{self.url}{path} answers HTTP {answer.status}; check that the address is a ComfyUI's"
                )
            return await _json(answer)

    async def _post(self, path: str, body: Json) -> None:
        async with self._request("POST", path, json=body) as answer:
            await answer.read()

    def _request(self, method: str, path: str, **more: Any) -> _Request:
        return _Request(self._http.request(method, self.url + path, **more), self.url, self._answered)


class _Request:
    """A request whose failures are ours, also those within the block."""

    def __init__(
        self, request: Awaitable[aiohttp.ClientResponse], url: str, answered: Callable[[], None]
    ) -> None:
        self._request, self._url, self._tell = request, url, answered

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            self._answer = await self._request
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:  # noqa: UP041
            raise self._lost(error) from error
        status = self._answer.status
        if status in AWAY:
            self._answer.release()
            raise Lost(f"no ComfyUI answers at {self._url} (HTTP {status})")
        self._tell()
        if status in (401, 403) and self._answer.method != "HEAD":
            self._answer.release()
            raise RemoteError(
                f"{self._url} refuses access (HTTP {status}); give what it asks for by --header, as"
                ' "Authorization: Bearer …"'
            )
        return self._answer

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._answer.release()
        # A file here that cannot be read or written is an OSError too, and has a name.
        named = isinstance(error, OSError) and error.filename is not None
        if isinstance(error, (aiohttp.ClientError, OSError, asyncio.TimeoutError)) and not named:  # noqa: UP041
            raise self._lost(error) from error

    def _lost(self, error: BaseException) -> RemoteError:
        if isinstance(error, aiohttp.InvalidURL):
            return RemoteError(f"{self._url} is no address; write it as http://192.168.1.5:8188")
        reason = str(error) or type(error).__name__
        return Lost(
            f"no ComfyUI answers at {self._url} ({reason}); check the address, and whether it runs and may be"
            " reached"
        )


async def _json(answer: aiohttp.ClientResponse) -> Any:
    try:
        return json.loads(await answer.read())
    except ValueError as error:
        raise RemoteError(
            f"{answer.url} answers with something other than JSON; check that the address is a ComfyUI's"
        ) from error


def _refusal(told: Json) -> str:
    """What /prompt says is wrong, a line each."""
    out = []
    for node in (told.get("node_errors") or {}).values():
        for error in node.get("errors", ()):
            what = f"{node.get('class_type')}: {error.get('message')}"
            about = error.get("extra_info") or {}
            choices = (about.get("input_config") or [None])[0]
            if error.get("type") == "value_not_in_list" and isinstance(choices, list):
                name, value = about.get("input_name"), about.get("received_value")
                out.append(
                    f"{node.get('class_type')}: the worker has no {value!r} ({name}; it has"
                    f" {shortened(map(str, choices), 20) or 'none'})"
                )
            else:
                out.append(f"{what}: {error.get('details')}" if error.get("details") else what)
    error = told.get("error") or {}
    return "the worker refused the graph: " + ("\n".join(out) or str(error.get("message") or told))
