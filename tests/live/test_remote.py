"""Training on a ComfyUI elsewhere: from one real server to another over loopback."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from safetensors import safe_open

from in_graph_lora.trainer.runs.checkpoints import newest
from workbench.dev import base as base_tools
from workbench.dev import server as server_tools
from workbench.dev.steps import LOGS

from ..conftest import _link_or_copy
from .test_training import graph, make_pictures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Remote:
    """scripts/remote.py at work; what it says is read as it comes."""

    def __init__(self, repo_root: Path, *arguments: object) -> None:
        command = [sys.executable, str(repo_root / "scripts" / "remote.py"), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def until(self, start: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not any(line.startswith(start) for line in self.lines):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def ended(self, seconds: float = 240) -> int:
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
            self._reader.join(10)
            assert self.process.stdout is not None
            self.process.stdout.close()
        return code


@pytest.fixture
def elsewhere(comfyui, tmp_path_factory, tiny_checkpoint) -> Iterator[list[server_tools.Server]]:
    """Servers with one base, each started by `start` below; all are stopped."""
    running: list[server_tools.Server] = []
    yield running
    for one in running:
        one.stop()


def start(comfyui: Path, folder: Path, port: int) -> server_tools.Server:
    return server_tools.start(
        Path(sys.executable), comfyui, folder, log=LOGS / "test-server-worker.log", port=port
    )


def work(folder: Path, tmp_path: Path, checkpoint_every: int, **train: object) -> Path:
    """A graph on pictures that no server has."""
    prompt = graph(str(folder), preview=["14", 0], **train)
    prompt = {key: prompt[key] for key in ("1", "2", "3", "4")}
    prompt["14"] = {
        "class_type": "TrainPreview",
        "inputs": {
            "prompts": "", "every": 1000, "held_out": 0, "measure_every": 50, "keep_best": False,
            "patience": 0, "negative": "", "seed": 0, "sampling_steps": 1, "cfg": 1.0,
            "sampler_name": "euler", "scheduler": "normal", "width": 64, "height": 64,
            "checkpoint_every": checkpoint_every, "keep_states": 2,
        },
    }  # fmt: skip
    path = tmp_path / "work.json"
    path.write_text(json.dumps(prompt))
    return path


def test_a_worker_that_is_killed_and_comes_back_ends_the_training_and_the_lora_comes_here(
    server, elsewhere, repo_root, comfyui, tmp_path, tiny_checkpoint
) -> None:
    pictures = make_pictures(tmp_path / "toys" / "2_toy")
    (pictures / "1.jpg").rename(pictures / "小猫 1.jpg")
    (pictures / "小猫 1.txt").write_text("一只小猫", encoding="utf-8")
    there = base_tools.prepare(tmp_path / "there")
    _link_or_copy(tiny_checkpoint, there / "models" / "checkpoints" / tiny_checkpoint.name)
    port = server_tools.free_port()
    elsewhere.append(start(comfyui, there, port))
    path = work(pictures.parent, tmp_path, 2, name="far", steps=12)
    output = server.base / "output"

    first = Remote(repo_root, f"127.0.0.1:{port}", path, "--output", output)
    first.until("step 4/")
    elsewhere[0].process.kill()
    elsewhere[0].process.wait()
    elsewhere.append(start(comfyui, there, port))
    assert first.ended() == 0, first.said
    assert "9 files" in first.said
    assert "trying again for 60 min" in first.said
    assert "connected again" in first.said
    assert "going on from step" in first.said
    assert "Load Dataset (In-Graph): " in first.said, "what nodes show is told"
    sent = {p.name: p.read_bytes() for p in (there / "input").rglob("*/2_toy/*")}
    assert sent == {p.name: p.read_bytes() for p in pictures.iterdir()}

    (run,) = (output / "in-graph-lora" / "far").iterdir()
    (origin,) = (there / "output" / "in-graph-lora" / "far").iterdir()
    files = {p.relative_to(origin): p.read_bytes() for p in origin.rglob("*") if p.is_file()}
    assert files == {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with safe_open(output / "loras" / "far.safetensors", framework="pt") as lora:
        assert lora.metadata()["ss_network_dim"] == "4"
    with urlopen(f"{server.url}/in_graph_lora/runs?limit=100") as answer:
        runs = {one["id"]: one["state"] for one in json.load(answer)["runs"]}
    assert runs[f"far/{run.name}"] == "finished", "the Runs panel here"
    with urlopen(f"{server.url}/object_info/LoraLoader") as answer:
        assert "far.safetensors" in answer.read().decode()


class Cable:
    """Passes on what comes to `port`, until it is cut; a new connection goes through again."""

    def __init__(self, to: str) -> None:
        self._to = to.removeprefix("http://").split(":")
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listening.accept()
            except OSError:
                return
            there = socket.create_connection((self._to[0], int(self._to[1])))
            self._ends += [here, there]
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for end in self._ends:
            end.close()


def test_a_cut_connection_is_found_again_and_ctrl_c_keeps_the_work_and_brings_it_here(
    server, repo_root, tmp_path
) -> None:
    cable = Cable(server.url)
    pictures = make_pictures(tmp_path / "toys")
    path = work(pictures, tmp_path, 1000, name="far-stopped", steps=50_000)
    remote = Remote(repo_root, f"127.0.0.1:{cable.port}", path, "--output", tmp_path / "output")
    try:
        remote.until("step 2/")
        cable.cut()
        remote.until("connected again")
        before = len(remote.lines)
        while not any(line.startswith("step ") for line in remote.lines[before:]):
            assert remote.process.poll() is None, remote.said
            time.sleep(0.05)
        remote.process.send_signal(signal.SIGINT)
        assert remote.ended() == 130, remote.said
    finally:
        cable.close()
        shutil.rmtree(server.base / "input" / "in-graph-lora", ignore_errors=True)
    assert "sent again" not in remote.said, "it went on there meanwhile"
    assert remote.lines[-1] == "stopped; the same command goes on"
    (run,) = (tmp_path / "output" / "in-graph-lora" / "far-stopped").iterdir()
    checkpoint, _ = newest(run / "checkpoints")
    assert checkpoint is not None
    assert 3 <= checkpoint.step < 50_000
    assert (tmp_path / "output" / "loras" / "far-stopped.safetensors").exists()
