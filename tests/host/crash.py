"""The test's side of crash_worker.py, and what must hold for the files of a run at any moment."""

from __future__ import annotations

import hashlib
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import kill
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Ended:
    """What a child said before its end."""

    signal: int
    said: list[dict[str, Any]]

    def all(self, kind: str) -> list[Any]:
        return [line[kind] for line in self.said if kind in line]

    def one(self, kind: str) -> Any:
        (value,) = self.all(kind)
        return value


class Worker:
    """The process that children are forked from."""

    def __init__(self, comfyui: Path, base: Path, checkpoint: Path, pictures: Path, logs: Path) -> None:
        self.logs = logs
        self._count = 0
        command = [sys.executable, HERE / "crash_worker.py", comfyui, base, checkpoint, pictures]
        self._stderr = (logs / "worker.log").open("w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0
        )
        assert self._answer() == {"ready": True}

    def close(self) -> None:
        with self._process as process:
            process.stdin.close()  # type: ignore[union-attr]
        self._stderr.close()

    def start(self, output: Path, **request: Any) -> Child:
        output.mkdir(parents=True, exist_ok=True)
        self._count += 1
        log = self.logs / f"child_{self._count}.jsonl"
        request |= {"output": str(output), "log": str(log)}
        self._process.stdin.write((json.dumps(request) + "\n").encode())  # type: ignore[union-attr]
        return Child(self, self._answer()["pid"], log)

    def run(self, output: Path, **request: Any) -> Ended:
        return self.start(output, **request).wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        assert line, (self.logs / "worker.log").read_text()[-3000:]
        return json.loads(line)

    def _answers_within(self, seconds: float) -> bool:
        return bool(select.select([self._process.stdout], [], [], seconds)[0])


@dataclass(frozen=True)
class Child:
    worker: Worker
    pid: int
    log: Path

    def wait(self) -> Ended:
        status = self.worker._answer()["status"]
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Ended(status & 0x7F, [json.loads(line) for line in lines])

    def kill_after(self, seconds: float) -> Ended:
        """As `kill -9`; the child may end before."""
        if not self.worker._answers_within(seconds):
            kill(self.pid, signal.SIGKILL)
        return self.wait()

    def kill_when(self, moment: Callable[[], object], later: float = 0) -> Ended:
        """So many seconds after the moment."""
        while not self.worker._answers_within(0):
            if moment():
                time.sleep(later)
                kill(self.pid, signal.SIGKILL)
                break
        return self.wait()

    def parts(self, output: Path, folder: str = "checkpoints") -> list[Path]:
        """The files that this child has begun and not finished."""
        return list(output.glob(f"in-graph-lora/*/*/{folder}/.*.{self.pid}.part"))


def check_whole(output: Path) -> None:
    """Every file under its final name is whole, and checkpoints are what they vouch for."""
    for path in output.rglob("*"):
        if path.is_dir() or path.suffix == ".part" or "tfevents" in path.name or path.name == "training.pid":
            continue
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as f:
                assert all(f.get_tensor(key) is not None for key in f.keys())  # noqa: SIM118 - not a dict
        elif path.suffix == ".json":
            said = json.loads(content)
            for name, digest in said.get("sha256", {}).items():
                found = hashlib.sha256((path.parent / name).read_bytes()).hexdigest()
                assert found == digest, f"{name} is not what {path.name} vouches for"
        elif path.suffix == ".jsonl":
            for line in content.splitlines(keepends=True):
                assert not line.endswith(b"\n") or json.loads(line)
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".md":
            assert content.endswith(b"|\n"), "a plan ends with its table"
        else:
            raise AssertionError(f"{path} is no file that a run writes")


def newest_step(output: Path) -> int:
    """Of the only run with a checkpoint; 0 without one."""
    found = output.glob("in-graph-lora/test/*/checkpoints/step_*.json")
    return max((int(path.stem.removeprefix("step_")) for path in found), default=0)


def outcome(output: Path, ended: Ended, step: int) -> dict[str, Any]:
    """All that a run which was never disturbed must have in common with this one."""
    (index,) = output.glob(f"in-graph-lora/test/*/checkpoints/step_{step:06d}.json")
    lines = (index.parent.parent / "events.jsonl").read_text().splitlines()
    clock = ("seconds", "path", "paths")
    told = [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]
    lora = load_file(ended.one("lora"))
    return {
        "lora": {key: lora[key].numpy().tobytes() for key in sorted(lora)},
        "losses": ended.one("losses"),
        "state": index.with_suffix(".state.safetensors").read_bytes(),
        "numbers": json.loads(index.read_text())["numbers"],
        "events": [e for e in told if e["event"] in ("StepDone", "Validated")],
    }
