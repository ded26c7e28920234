"""A real ComfyUI server with the pack in it, started and stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .base import PACK_NAME
from .steps import CACHE, SetupError

START_SECONDS = 300  # the first start compiles everything that it imports


@dataclass
class Server:
    """A running server. `with start(...) as server:` stops it on every exit path."""

    process: subprocess.Popen[bytes]
    url: str
    base: Path
    log: Path | None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Asks politely, then insists: a server left behind would hold its port and gigabytes of memory."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def start(
    python: Path,
    comfyui: Path,
    base: Path,
    *,
    log: Path | None = None,
    port: int | None = None,
    more: Sequence[str] = (),
) -> Server:
    """Starts ComfyUI on 127.0.0.1 and returns once it answers. Without `log` it writes to the terminal."""
    command = [
        str(python), "-u", str(comfyui / "main.py"),
        "--base-directory", str(base),
        # By default the database is in ComfyUI's own folder.
        "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}",
        "--listen", "127.0.0.1",
        "--port", str(port or free_port()),
        "--disable-auto-launch",
        *_device_flags(python),
        *more,
    ]  # fmt: skip
    url = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
    # A folder on PYTHONPATH with a `nodes` or `utils` in it would shadow ComfyUI's own.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["PYTHONIOENCODING"] = "utf-8"
    if not comfyui.is_relative_to(CACHE):
        # The user's ComfyUI is only read from, so compiled files go elsewhere.
        env["PYTHONPYCACHEPREFIX"] = str(CACHE / "pycache")
    out = None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        out = log.open("wb")
    process = subprocess.Popen(command, cwd=base, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    if out is not None:
        out.close()
    server = Server(process, url, base, log)
    try:
        _wait_until_it_answers(server)
    except BaseException:
        server.stop()
        raise
    return server


def free_port() -> int:
    try:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            return sock.getsockname()[1]
    except OSError as error:
        raise SetupError(f"No free port on 127.0.0.1 for the server ({error}).") from error


def _device_flags(python: Path) -> list[str]:
    """ComfyUI refuses to start without an accelerator unless it is told to use the CPU."""
    question = "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())"
    answer = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SetupError(f"torch does not start in {python} ({reason}); delete .venv and run this again.")
    return [] if answer.stdout.strip() == "True" else ["--cpu"]


def _wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        code = server.process.poll()
        if code is not None:
            raise SetupError(f"ComfyUI ended with code {code} before it answered{_why(server.log)}")
        if _answers(server.url):
            return
        time.sleep(0.2)
    raise SetupError(f"ComfyUI did not answer at {server.url} within {START_SECONDS} s{_why(server.log)}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/system_stats", timeout=5) as reply:
            return "system" in json.load(reply)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _why(log: Path | None) -> str:
    if log is None:
        return "; its own output above says why."
    text = log.read_text(encoding="utf-8", errors="replace").rstrip()
    if "address already in use" in text.lower():
        return f": the port was taken meanwhile; run this again (log: {log})"
    return f": {text.splitlines()[-1] if text else 'it said nothing'} (log: {log})"


def import_failure(log: Path) -> str | None:
    """Why the pack could not be imported: ComfyUI goes on without it, and says so only in its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if not any("IMPORT FAILED" in line and PACK_NAME in line for line in lines):
        return None
    signs = ("Cannot import", "Error while calling comfy_entrypoint")
    reason = next((line for line in lines if PACK_NAME in line and any(s in line for s in signs)), "")
    return f"ComfyUI could not import the pack: {reason or 'it gave no reason'} (log: {log})"
