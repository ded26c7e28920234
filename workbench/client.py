"""A small client of a ComfyUI server: queue a prompt, watch its events, fetch what it made."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

Prompt = dict[str, dict[str, Any]]
"""A graph in the API format: node id to {"class_type", "inputs"}."""


class PromptRejected(Exception):
    """The server refused the graph, or a part of it. `details` is its answer: what is wrong where."""

    def __init__(self, details: dict[str, Any]) -> None:
        self.details = details
        super().__init__(_explain(details))


@dataclass(frozen=True)
class Event:
    """One websocket message. Binary ones have the type "binary" and {"kind", "bytes"}."""

    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What became of a prompt."""

    prompt_id: str
    status: Literal["success", "error", "interrupted"]
    outputs: dict[str, dict[str, Any]]
    """Node id to the node's ui output."""
    events: list[Event] = field(repr=False)
    error: dict[str, Any] | None = None
    """Of a failed prompt: node_id, node_type, exception_type, exception_message, traceback."""

    def of_type(self, event_type: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type == event_type]


class Client:
    """`with Client(server.url) as client:` listens on the websocket in a thread until closed."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.id = uuid.uuid4().hex
        self._events: queue.Queue[Event] = queue.Queue()
        self._connected = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._listen, name="comfyui-events", daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        if not self._connected.wait(30):
            self.close()
            raise ConnectionError(f"no websocket at {self.url}")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(10)

    # What a test or the demo asks for.

    def queue(self, prompt: Prompt, **more: Any) -> str:
        """Queues a graph and returns its id. `more` goes into the request, such as extra_data.

        Raises PromptRejected also where the server would run only the outputs without an error, and call that
        success; what it has begun is ended.
        """
        body = {"prompt": prompt, "client_id": self.id, **more}
        try:
            answer = self.post("/prompt", body)
        except urllib.error.HTTPError as error:
            raise PromptRejected(json.loads(error.read())) from error
        if answer.get("node_errors"):
            self.cancel(answer["prompt_id"])
            raise PromptRejected(answer)
        return answer["prompt_id"]

    def cancel(self, prompt_id: str) -> None:
        """Takes a prompt out of the queue, or ends it where it runs already."""
        self.post("/queue", {"delete": [prompt_id]})
        self.post("/interrupt", {"prompt_id": prompt_id})

    def wait(
        self, prompt_id: str, timeout: float = 300, on_event: Callable[[Event], None] | None = None
    ) -> Result:
        """Collects events until the prompt is over; each is also given to `on_event` as it comes."""
        deadline = time.monotonic() + timeout
        events: list[Event] = []
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                last = events[-1] if events else "nothing"
                text = f"prompt {prompt_id} is not over after {timeout} s; last heard: {last}"
                raise TimeoutError(text) from None
            if event.data.get("prompt_id", prompt_id) != prompt_id:
                continue  # the end of an earlier prompt that nobody waited for
            events.append(event)
            if event.type == "connection_lost":
                raise ConnectionError(f"the server at {self.url} went away: {event.data['reason']}")
            if on_event is not None:
                on_event(event)
            status = _ENDS.get(event.type)
            if status is not None:
                error = event.data if status == "error" else None
                return Result(prompt_id, status, self._outputs(prompt_id), events, error)

    def run(self, prompt: Prompt, timeout: float = 300) -> Result:
        return self.wait(self.queue(prompt), timeout)

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def free(self) -> None:
        """Makes the server forget its models and cached results."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        return self.get(f"/object_info/{node}" if node else "/object_info")

    def history(self, prompt_id: str) -> dict[str, Any]:
        return self.get(f"/history/{prompt_id}").get(prompt_id, {})

    def image(self, saved: dict[str, str]) -> bytes:
        """The bytes of a picture, given an entry of a node's "images" output."""
        return self.fetch("/view?" + urllib.parse.urlencode(saved))

    # HTTP.

    def get(self, path: str) -> Any:
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return reply.read()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer = reply.read()
        return json.loads(answer) if answer else None

    def _outputs(self, prompt_id: str) -> dict[str, dict[str, Any]]:
        """The history is written just after the last event, so it is asked for until it is there."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if history := self.history(prompt_id):
                return history["outputs"]
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt_id} is over but not in the history")

    # The websocket.

    def _listen(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._receive())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _receive(self) -> None:
        address = f"{self.url}/ws?clientId={self.id}"
        try:
            async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
                self._connected.set()
                async for message in socket:
                    self._events.put(_event(message))
            reason = "it closed the connection"
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error)
        self._events.put(Event("connection_lost", {"reason": reason}))


_ENDS: dict[str, Literal["success", "error", "interrupted"]] = {
    "execution_success": "success",
    "execution_error": "error",
    "execution_interrupted": "interrupted",
}


def _event(message: aiohttp.WSMessage) -> Event:
    if message.type is aiohttp.WSMsgType.TEXT:
        content = json.loads(message.data)
        return Event(content["type"], content.get("data") or {})
    data = message.data if isinstance(message.data, bytes) else b""
    return Event("binary", {"kind": int.from_bytes(data[:4], "big"), "bytes": data[4:]})


def _explain(details: dict[str, Any]) -> str:
    lines = [(details.get("error") or {}).get("message", "the server refused a part of the prompt")]
    for node_id, node in (details.get("node_errors") or {}).items():
        for error in node.get("errors", []):
            lines.append(f"node {node_id} ({node.get('class_type')}): {error['message']}: {error['details']}")
    return "\n".join(lines)
