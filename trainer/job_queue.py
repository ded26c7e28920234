"""A folder of jobs, and how far each is: queue.json and queue.md beside them.

<folder>/<job>/job.json                 a job, or a sweep
<folder>/<sweep>/<name>/job.json        written by us: what a sweep asks for
<folder>/queue.json, queue.md           what became of them; written whole after each change
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import JobError
from .files import is_writing, natural_key, not_written, read_json, write_json, write_text
from .jobs import FILE, Job
from .sweep import Swept, is_sweep, jobs_of

FORMAT = 1
RECORD, SUMMARY, LOCK = "queue.json", "queue.md", ".queue.lock"
WAITING, TRAINING, FINISHED, FAILED, STOPPED = "waiting", "training", "finished", "failed", "stopped"


@dataclass(frozen=True, kw_only=True)
class Entry:
    name: str
    """Its folder, below that of the queue, with "/"."""
    job: Job | None
    problem: str = ""
    """Why there is no job."""
    swept: Swept | None = None
    sweep: str = ""
    """Name of the sweep that it is part of."""

    @property
    def digest(self) -> str:
        content = self.job.content() if self.job else self.problem
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What became of a job."""

    state: str = WAITING
    digest: str = ""
    """`Entry.digest` of what was trained."""
    device: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    """Mean of the last steps."""
    seconds: float = 0
    """Of work, over all tries."""
    lora: str = ""
    run: str = ""
    """Its folder."""
    error: str = ""

    @classmethod
    def read(cls, content: Any) -> Progress | None:
        """None for what no queue has written."""
        default = asdict(cls())
        if not isinstance(content, dict) or content.keys() != default.keys():
            return None
        for name, value in content.items():
            own = default[name]
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            good = (
                isinstance(value, str) if isinstance(own, str) else number or (own is None and value is None)
            )
            if not good:
                return None
        return cls(**content)


@dataclass
class Evidence:
    """The report of a sweep."""

    loras: list[str] = field(default_factory=list)
    """What it is of."""
    report: str = ""
    error: str = ""


class JobQueue:
    """`with JobQueue.lock(folder): queue = JobQueue(folder)`"""

    def __init__(self, folder: Path) -> None:
        """Reads the jobs and what became of them; writes those of sweeps. Raises JobError, StorageError."""
        self.folder = folder
        self.entries = entries(folder)
        self.notes: list[str] = []
        before, self.evidence = self._read()
        self.progress = {e.name: self._start(e, before.get(e.name)) for e in self.entries}
        self.write()

    @staticmethod
    def lock(folder: Path) -> AbstractContextManager[Any]:
        """The operating system lets go of it when its process ends, however that is. Raises JobError,
        StorageError."""
        if not folder.is_dir():
            raise JobError(f"{folder} is no folder; give the one that holds the jobs' folders")
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            return lock.acquire()
        except Timeout:
            known = read_json(folder / RECORD)
            process = known.get("process") if isinstance(known, dict) else None
            raise JobError(
                f"another queue trains the jobs of {folder} (process {process}); wait for its end, or stop it"
            ) from None
        except OSError as error:
            raise not_written(folder / LOCK, error) from error

    def _read(self) -> tuple[Mapping[str, Progress], dict[str, Evidence]]:
        found = _record(self.folder)
        path = self.folder / RECORD
        if found is None and path.exists():
            self.notes.append(
                f"{path} is damaged or of another version and is written anew; what is finished is found"
                " again by its runs"
            )
        return found or ({}, {})

    def _start(self, entry: Entry, before: Progress | None) -> Progress:
        """A finished job stays so while its file and its LoRA are what they were."""
        if entry.job is None:
            return Progress(state=FAILED, digest=entry.digest, error=entry.problem)
        if before is None or before.digest != entry.digest:
            return Progress(digest=entry.digest)
        if before.state == FINISHED and os.path.isfile(before.lora):
            return before
        return replace(before, state=WAITING, device="", error="")

    @property
    def waiting(self) -> list[Entry]:
        return [e for e in self.entries if self.progress[e.name].state == WAITING]

    @property
    def finished(self) -> bool:
        return all(p.state == FINISHED for p in self.progress.values())

    @property
    def succeeded(self) -> bool:
        """With the reports of sweeps."""
        sweeps = {e.sweep for e in self.entries}
        return self.finished and not any(e.error for s, e in self.evidence.items() if s in sweeps)

    def update(self, name: str, **changes: Any) -> None:
        """In memory; `write` comes after."""
        self.progress[name] = replace(self.progress[name], **changes)

    def sweep_to_report(self, sweep: str) -> list[Entry]:
        """The jobs of a sweep where all that could be trained are, and no report is of their LoRAs."""
        own = [e for e in self.entries if e.sweep == sweep]
        done = [e for e in own if self.progress[e.name].state == FINISHED]
        settled = all(self.progress[e.name].state in (FINISHED, FAILED) for e in own)
        if not sweep or not settled or len(done) < 2:
            return []
        before = self.evidence.get(sweep)
        known = before is not None and before.loras == self.loras(done) and os.path.isfile(before.report)
        return [] if known else done

    def loras(self, chosen: list[Entry]) -> list[str]:
        """As Load LoRA lists them."""
        return [Path(self.progress[e.name].lora).name for e in chosen]

    def write(self) -> None:
        """Raises StorageError."""
        content = {
            "format": FORMAT,
            "process": os.getpid(),
            "written": time.strftime("%Y-%m-%d %H:%M:%S"),
            "jobs": {name: asdict(own) for name, own in self.progress.items()},
            "evidence": {name: asdict(own) for name, own in self.evidence.items()},
        }
        write_json(self.folder / RECORD, content)
        write_text(self.folder / SUMMARY, self.markdown() + "\n")

    def rows(self) -> list[tuple[str, ...]]:
        """job, state, step, loss, time, device, and what is to be said."""
        out = []
        for entry in self.entries:
            p = self.progress[entry.name]
            out.append(
                (
                    entry.name,
                    p.state,
                    f"{p.step}/{p.steps}" if p.steps else "",
                    "" if p.loss is None else f"{p.loss:.4f}",
                    _time(p.seconds) if p.seconds else "",
                    p.device,
                    p.error.splitlines()[0] if p.error else Path(p.lora).name,
                )
            )
        return out

    def table(self, width: int = 120) -> str:
        """For a terminal of `width` columns."""
        rows = [HEAD, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
        shown = [i for i in range(len(HEAD)) if any(row[i] for row in rows[1:]) or i < 2]
        lines = ["  ".join(row[i].ljust(widths[i]) for i in shown).rstrip() for row in rows]
        return "\n".join(line if len(line) <= width else f"{line[: width - 1]}…" for line in lines)

    def markdown(self) -> str:
        counts = [(s, sum(p.state == s for p in self.progress.values())) for s in STATES]
        lines = [
            f"# {self.folder.name}",
            "",
            ", ".join(f"{n} {state}" for state, n in counts if n) or "no jobs",
            "",
            *_table(HEAD, self.rows()),
        ]
        for sweep in dict.fromkeys(e.sweep for e in self.entries if e.sweep):
            lines += ["", f"## Sweep {sweep}", "", *self._side_by_side(sweep)]
            if own := self.evidence.get(sweep):
                lines += ["", f"Evidence side by side: {own.report or own.error}"]
        return "\n".join(lines)

    def _side_by_side(self, sweep: str) -> list[str]:
        own = [(e, e.swept.values) for e in self.entries if e.sweep == sweep and e.swept]
        inputs = list(dict.fromkeys(name for _, values in own for name in values))
        rows = []
        for entry, values in own:
            p = self.progress[entry.name]
            loss = "" if p.loss is None else f"{p.loss:.4f}"
            rows.append((*(str(values.get(name, "")) for name in inputs), p.state, loss, Path(p.lora).name))
        return _table((*inputs, "state", "loss", "LoRA"), rows)


def _record(folder: Path) -> tuple[dict[str, Progress], dict[str, Evidence]] | None:
    """Of queue.json; None where no queue of this version wrote it."""
    content = read_json(folder / RECORD)
    whole = isinstance(content, dict) and content.get("format") == FORMAT
    jobs = content.get("jobs") if whole else None
    reports = content.get("evidence") if whole else None
    if not isinstance(jobs, dict) or not isinstance(reports, dict):
        return None
    names = {f.name for f in fields(Evidence)}
    known = {name: Progress.read(own) for name, own in jobs.items()}
    return (
        {name: own for name, own in known.items() if own is not None},
        {
            name: Evidence(**own)
            for name, own in reports.items()
            if isinstance(own, dict) and own.keys() == names
        },
    )


def listed(folder: Path) -> list[dict[str, Any]]:
    """{name, state, step, steps, loss, error} of each job that is there, for the page. Nothing is written.

    A job that no queue has seen waits. What is said to be trained by a queue that is gone was stopped.
    """
    known, _ = _record(folder) or ({}, {})
    files = [folder / name / FILE for name in known]
    new = [path for path in folder.glob(f"*/{FILE}") if not any(path.parent in f.parents for f in files)]
    there = {
        p.parent.relative_to(folder).as_posix(): known.get(p.parent.relative_to(folder).as_posix())
        for p in [*files, *new]
        if p.is_file()
    }
    alive = _is_running(folder)
    out = []
    for name in sorted(there, key=natural_key):
        own = there[name] or Progress()
        state = STOPPED if own.state == TRAINING and not alive else own.state
        shown = {"step": own.step, "steps": own.steps, "loss": own.loss, "error": own.error}
        out.append({"name": name, "state": state, **shown})
    return out


def _is_running(folder: Path) -> bool:
    """By the process that wrote queue.json: to ask for the lock could keep a queue from starting."""
    content = read_json(folder / RECORD)
    process = content.get("process") if isinstance(content, dict) else None
    try:
        return type(process) is int and is_writing(process, (folder / RECORD).stat().st_mtime)
    except OSError:
        return False


HEAD = ("job", "state", "step", "loss", "time", "device", "")
STATES = (FINISHED, TRAINING, WAITING, STOPPED, FAILED)


def entries(folder: Path) -> list[Entry]:
    """The jobs in a folder, by name, those of sweeps in place of the sweep, which are written."""
    found: list[Entry] = []
    for path in sorted((p.parent for p in folder.glob(f"*/{FILE}")), key=lambda p: natural_key(p.name)):
        try:
            job = Job.read(path)
            swept = jobs_of(job) if is_sweep(job) else []
        except JobError as error:
            found.append(Entry(name=path.name, job=None, problem=str(error)))
            continue
        if not swept:
            found.append(Entry(name=path.name, job=job))
        for one in swept:
            own = path / one.job.name
            if read_json(own / FILE) != one.job.content():
                one.job.write(own)
            name = f"{path.name}/{one.job.name}"
            found.append(Entry(name=name, job=one.job, swept=one, sweep=path.name))
    return found


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines]


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
