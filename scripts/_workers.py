"""The processes of train_queue.py: one at a time on each device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _job import INTERRUPTED
from _processes import visible_devices
from _worker import MARK

from in_graph_lora.trainer.errors import JobError
from in_graph_lora.trainer.files import write_json
from in_graph_lora.trainer.job_queue import (
    FAILED,
    FINISHED,
    STOPPED,
    TRAINING,
    WAITING,
    Entry,
    Evidence,
    JobQueue,
)
from in_graph_lora.trainer.runs.folder import RunFolder
from in_graph_lora.trainer.sweep import evidence

WORKER = Path(__file__).with_name("_worker.py")
POLLED = 0.2
"""Seconds."""
LOSS_OVER = 100
"""Steps."""
REDRAWN, WRITTEN = 1.0, 10.0
"""Seconds between two tables on the screen, and between two summaries, while nothing begins or ends."""


@dataclass(frozen=True)
class Device:
    name: str
    options: tuple[str, ...] = ()
    """ComfyUI's, that leave it this device alone."""


def devices(wish: str | None, options: Sequence[str]) -> list[Device]:
    """By torch, or as wished. One without a name where ComfyUI is to choose. Raises JobError."""
    import torch

    xpu = getattr(torch, "xpu", None)
    intel = xpu.device_count() if xpu is not None and xpu.is_available() else 0

    def device(name: str) -> Device:
        if intel:
            return Device(name, ("--oneapi-device-selector", f"level_zero:{name}"))
        return Device(name, ("--cuda-device", name))  # AMD's too: ComfyUI sets both

    if wish is not None:
        if not all(part.strip().isdecimal() for part in wish.split(",")):
            raise JobError(f"--devices is {wish!r}; write numbers of GPUs, as 0,1")
        return [device(str(n)) for n in dict.fromkeys(map(int, wish.split(",")))]
    count = 0 if "--cpu" in options else torch.cuda.device_count() or intel
    chosen = {"--cuda-device", "--oneapi-device-selector", "--directml"} & set(options)
    if count < 2 or chosen:
        return [Device("")]
    seen = [] if intel else visible_devices()[1]  # torch numbers only those that it sees
    return [device(name) for name in (seen or [str(n) for n in range(count)])[:count]]


class Workers:
    def __init__(
        self,
        queue: JobQueue,
        comfyui: Path,
        options: Sequence[str],
        on: Sequence[Device],
        prompts: Sequence[str],
    ) -> None:
        self.queue, self.comfyui, self.prompts, self.devices = queue, comfyui, prompts, on
        # ComfyUI's database is one process's; a job needs none.
        own = [] if "--database-url" in options else ["--database-url", "sqlite:///:memory:"]
        self.options = [*options, *own]
        self._lock = threading.RLock()
        self._tasks: list[Callable[[Device], None]] = [self._training(entry) for entry in queue.waiting]
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = False
        self._failure: BaseException | None = None
        self._written = 0.0
        self._busy = 0
        self._reported: set[str] = set()
        self._screen = Screen(queue)

    def run(self) -> bool:
        """Whether it was stopped before its end."""
        for note in self.queue.notes:
            print(note, flush=True)
        for sweep in dict.fromkeys(e.sweep for e in self.queue.entries if e.sweep):
            self._report(sweep)
        self._screen.show()
        self._busy = len(self.devices)
        for device in self.devices:
            threading.Thread(target=self._work, args=(device,)).start()
        while self._busy:  # no join: before Python 3.13 an interrupted one takes the thread for ended
            try:
                time.sleep(POLLED)
            except KeyboardInterrupt:
                self.stop()
        self._screen.show()
        if self._failure is not None:
            raise self._failure
        return self._stopping

    def stop(self) -> None:
        """Each process writes a checkpoint and ends."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                if process.stdin is not None:
                    process.stdin.close()

    def _work(self, device: Device) -> None:
        try:
            self._all_tasks(device)
        finally:
            with self._lock:
                self._busy -= 1

    def _all_tasks(self, device: Device) -> None:
        while True:
            with self._lock:
                if self._stopping or not self._tasks:
                    return
                task = self._tasks.pop(0)
            try:
                task(device)
            except BaseException as error:  # noqa: BLE001 - the main thread raises it
                self._failure = error
                self.stop()

    def _training(self, entry: Entry) -> Callable[[Device], None]:
        return lambda device: self._train(entry, device)

    def _train(self, entry: Entry, device: Device) -> None:
        """One job, from its start to whatever end."""
        name, began = entry.name, time.monotonic()
        before = self.queue.progress[name].seconds
        self._update(name, state=TRAINING, device=device.name)
        found: dict[str, Any] = {}

        def heard(what: dict[str, Any]) -> None:
            found.update(what)
            shown = {key: what[key] for key in ("step", "steps", "loss", "run") if key in what}
            self._update(name, write=False, seconds=before + time.monotonic() - began, **shown)

        folder = self.queue.folder / name
        log = folder / "train.log"
        code = self._process(["job", str(folder)], device, log, heard) if folder.is_dir() else 1
        if code != 0 and not folder.is_dir():
            found["error"] = f"the folder {folder} was deleted while the queue ran"
        ended: dict[str, Any] = {"seconds": before + time.monotonic() - began}
        if code == 0 and found.get("lora"):
            ended |= {"state": FINISHED, "error": "", **reached(Path(found["run"]))}
            ended |= {"lora": found["lora"], "run": found["run"]}
        elif code == INTERRUPTED or self._stopping:
            ended |= {"state": STOPPED}
        else:
            ended |= {"state": FAILED, "error": found.get("error") or f"ended with code {code}; see {log}"}
        self._update(name, **ended)
        self._report(entry.sweep)

    def _report(self, sweep: str) -> None:
        """Puts the evidence of a sweep on the list when its last job is done."""
        with self._lock:
            done = self.queue.sweep_to_report(sweep)
            if done and not self._stopping and sweep not in self._reported:
                self._reported.add(sweep)
                self.queue.evidence[sweep] = Evidence(loras=self.queue.loras(done))
                self._tasks.append(lambda device: self._compare(sweep, done, device))

    def _compare(self, sweep: str, done: Sequence[Entry], device: Device) -> None:
        own = self.queue.evidence[sweep]
        folder = self.queue.folder / sweep
        found: dict[str, Any] = {}
        try:
            graph, node = evidence([e.swept for e in done if e.swept], own.loras, self.prompts)
        except JobError as error:
            own.error = str(error)
        else:
            write_json(folder / "evidence.json", {"graph": graph, "node": node})
            log = folder / "evidence.log"
            self._screen.note(f"evidence of {sweep}, side by side")
            code = self._process(["graph", str(folder / "evidence.json")], device, log, found.update)
            if self._stopping:
                del self.queue.evidence[sweep]
            elif code == 0 and found.get("folder"):
                own.report = str(Path(found["folder"]) / "report.html")
            else:
                own.error = found.get("error") or f"ended with code {code}; see {log}"
        with self._lock:
            self.queue.write()
        if own.report or own.error:
            self._screen.note(own.report or own.error)

    def _process(
        self, what: Sequence[str], device: Device, log: Path, heard: Callable[[dict[str, Any]], None]
    ) -> int:
        """Its exit code. heard: what it says; all else goes to `log`."""
        command = [
            sys.executable,
            str(WORKER),
            *what,
            str(self.comfyui),
            "--",
            *self.options,
            *device.options,
        ]
        # Ctrl-C reaches the queue alone, which tells its processes once.
        apart: dict[str, Any] = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            if sys.platform == "win32"
            else {"start_new_session": True}
        )
        with log.open("w", encoding="utf-8") as written:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                text=True,
                encoding="utf-8",
                errors="replace",
                **apart,
            )
            with self._lock:
                self._running.add(process)
                if self._stopping and process.stdin is not None:
                    process.stdin.close()
            assert process.stdout is not None
            for line in process.stdout:
                said = told(line)
                if said is None:
                    written.write(line)
                    written.flush()
                else:
                    heard(said)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
                if process.stdin is not None:
                    process.stdin.close()
            process.stdout.close()
        return code

    def _update(self, name: str, *, write: bool = True, **changes: Any) -> None:
        with self._lock:
            self.queue.update(name, **changes)
            if write or time.monotonic() - self._written > WRITTEN:
                self.queue.write()
                self._written = time.monotonic()
        self._screen.changed(whole=write)


def told(line: str) -> dict[str, Any] | None:
    """What a process says to the queue; None for any other line, and for one that is torn."""
    if not line.startswith(MARK):
        return None
    try:
        return json.loads(line[len(MARK) :])
    except ValueError:
        return None


def reached(run: Path) -> dict[str, Any]:
    """Step, steps and the mean loss of the last steps of a finished run."""
    folder = RunFolder(run)
    record = folder.record()
    done = record.finished if record else None
    if done is None:
        return {}
    losses = [loss for loss in folder.log.losses(done.steps)[-LOSS_OVER:] if loss == loss]
    mean = sum(losses) / len(losses) if losses else None
    return {"step": done.steps, "steps": done.asked, "loss": mean}


class Screen:
    """The table: drawn again in its place on a terminal; elsewhere a line for each job that changes."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue, self._lines, self._at = queue, 0, 0.0
        self._terminal = sys.stdout.isatty() and sys.platform != "win32"
        self._told: dict[str, str] = {}
        self._lock = threading.Lock()

    def show(self) -> None:
        with self._lock:
            self._draw()

    def note(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)
            self._lines = 0  # the next table stands below

    def changed(self, *, whole: bool) -> None:
        """whole: a job began or ended."""
        with self._lock:
            if self._terminal:
                if whole or time.monotonic() - self._at > REDRAWN:
                    self._draw()
                return
            for name, p in self.queue.progress.items():
                if p.state not in (WAITING, self._told.get(name)):
                    self._told[name] = p.state
                    more = [f"on {p.device}" if p.device else "", p.error or p.lora]
                    print(" ".join(filter(None, [f"{name}: {p.state}", *more])), flush=True)

    def _draw(self) -> None:
        table = self.queue.table(shutil.get_terminal_size((120, 40)).columns)
        if self._terminal and self._lines:
            print(f"\x1b[{self._lines}A\x1b[J", end="")
        print(table, flush=True)
        self._lines, self._at = table.count("\n") + 1, time.monotonic()
