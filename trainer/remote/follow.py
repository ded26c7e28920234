"""One graph on a ComfyUI elsewhere, from being sent to its end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ..errors import RemoteError
from .work import TRAINER, Upload, Work
from .worker import Json, Worker

PROGRESS = "in_graph_lora.progress"
CHECKED, HEARD = 3.0, 0.5
"""Seconds between two looks at the queue, and between two looks whether to stop."""
DEATHS = 3
"""So often a worker may start anew without a step that is new."""
ENDS = ("execution_success", "execution_error", "execution_interrupted")
SUCCESS, FAILED, CANCELLED = "success", "failed", "cancelled"

Told = Callable[[str, Mapping[str, Any]], None]


@dataclass
class End:
    state: str
    error: str = ""
    runs: list[str] = field(default_factory=list)
    """Ids of the runs that it had, the newest last."""


class _Gone(Exception):
    """The worker knows nothing of the prompt: it was started anew."""


async def send_files(worker: Worker, uploads: list[Upload], stopping: Callable[[], bool]) -> int:
    """Sends what is not there yet; how many those were."""
    sent = 0
    for upload in uploads:
        if stopping():
            break

        async def one(upload: Upload = upload) -> int:
            if await worker.has(upload):
                return 0
            await worker.upload(upload)
            return 1

        sent += await worker.patiently(one)
    return sent


class Following:
    """told: gets every message that a page would get. say: a sentence on the connection and the queue."""

    def __init__(
        self,
        worker: Worker,
        work: Work,
        told: Told,
        say: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.worker, self.work, self._told, self._say, self._stopping = worker, work, told, say, stopping
        self._runs: list[str] = []
        self._texts: set[str] = set()
        self._step, self._cancelled = -1, False

    async def train(self) -> End:
        """Sends the graph, or finds it in the queue, and follows it. Raises RemoteError."""
        graph, deaths, before = self.work.graph, 0, -1
        prompt: str | None = await self.worker.patiently(lambda: self.worker.same(graph))
        if prompt is not None:
            self._say("this graph is in the worker's queue already and is followed")
        while True:
            try:
                own = prompt or await self._queued(graph)
                heard = await self.worker.patiently(lambda own=own: self._heard(own), forever=True)
                return self._end(heard)
            except _Gone:
                if self._stopping():
                    return End(CANCELLED, runs=self._runs)
                deaths = 0 if self._step > before else deaths + 1
                before = max(before, self._step)
                if deaths >= DEATHS:
                    raise RemoteError(
                        f"the worker ended {DEATHS} times without a new step; its own log says why"
                    ) from None
                self._say("the worker was started anew; the graph is sent again, to go on from what was kept")
                graph, prompt = self._going_on(), None

    async def _queued(self, graph: dict[str, Json]) -> str:
        prompt = str(uuid.uuid4())
        await self.worker.patiently(lambda: self.worker.queue(prompt, graph, self.work.extra))
        return prompt

    def _going_on(self) -> dict[str, Json]:
        """A new run that was asked for has begun; it is not to begin again."""
        if not self._runs:
            return self.work.graph
        own = {key: {**node, "inputs": dict(node["inputs"])} for key, node in self.work.graph.items()}
        for node in own.values():
            if node["class_type"] == TRAINER and "existing_run" in node["inputs"]:
                node["inputs"]["existing_run"] = "continue"
        return own

    async def _heard(self, prompt: str) -> Json:
        """The history of a prompt, when it is over. Raises Lost, _Gone."""
        looked = -CHECKED
        async with aclosing(self.worker.events(HEARD)) as events:
            async for event, data in events:
                if self._stopping() and not self._cancelled:
                    await self.worker.cancel(prompt)
                    self._cancelled = True
                if data.get("prompt_id") == prompt:
                    self._take(event, data)
                if event in ENDS or time.monotonic() - looked > CHECKED:
                    looked = time.monotonic()
                    state = await self.worker.state(prompt)
                    if state is None:
                        raise _Gone
                    if state:
                        return state
        raise AssertionError("events end by Lost")

    def _take(self, event: str, data: Mapping[str, Any]) -> None:
        if event == PROGRESS:
            self._has_run(str(data.get("run") or ""))
            self._step = max(self._step, int(data.get("step") or 0))
        if event == "executed":
            self._made(str(data.get("node")), data.get("output") or {})
            return
        self._told(event, data)

    def _made(self, node: str, output: Mapping[str, Any]) -> None:
        for run in output.get("run") or ():
            parts = str(run.get("run_dir", "")).replace("\\", "/").split("/")
            self._has_run("/".join(parts[-2:]))
        if node not in self._texts:
            self._texts.add(node)
            self._told("executed", {"node": node, "output": output})

    def _has_run(self, run: str) -> None:
        if run.count("/") == 1 and run not in self._runs:
            self._runs.append(run)

    def _end(self, history: Json) -> End:
        for node, output in (history.get("outputs") or {}).items():
            self._made(node, output)
        status = history.get("status") or {}
        if status.get("completed"):
            return End(SUCCESS, runs=self._runs)
        ends = dict(m for m in status.get("messages", ()) if len(m) == 2)
        if "execution_interrupted" in ends:
            return End(CANCELLED, runs=self._runs)
        failure = ends.get("execution_error") or {}
        what = str(failure.get("exception_message") or "failed without a word; its log says why").strip()
        return End(FAILED, f"{failure.get('node_type', 'the graph')}: {what}", self._runs)
