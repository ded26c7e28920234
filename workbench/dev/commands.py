"""The subcommands of dev.py."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import ROOT
from . import base, bundle, comfyui, environment, gpu, server, typescript
from .steps import CACHE, SetupError, full_disk_explained, only_one_setup, say

MOST_WORKERS = 4
"""Each holds a ComfyUI and may start another: some 4 GB."""

KEPT_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(CACHE / "bytecode")}
"""Where Python must not keep it, as in many containers, each process compiles torch again: 10 s."""


def set_up(*, dev: bool) -> tuple[Path, Path]:
    """Brings .venv, ComfyUI, packages; quick when they are there. Returns (python, ComfyUI's folder)."""
    with only_one_setup():
        python = environment.make()
        comfy = comfyui.bring(python)
        environment.install(comfy, dev=dev)
    return python, comfy


def demo(rest: Sequence[str]) -> int:
    """train a small LoRA in a real ComfyUI, end to end"""
    python, comfy = set_up(dev=False)
    return _run([python, "-m", "workbench.demo.run", *rest], IGL_COMFYUI=str(comfy))


def test(rest: Sequence[str]) -> int:
    """run the tests; --quick leaves out the slow ones; other arguments go to pytest"""
    python, comfy = set_up(dev=True)
    arguments = ["-m", "not slow"] if "--quick" in rest else []
    arguments += [argument for argument in rest if argument != "--quick"]
    if not any(Path(argument.partition("::")[0]).exists() for argument in rest):  # the whole suite
        workers = min(os.cpu_count() or 1, MOST_WORKERS)
        spread = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
        arguments = [*spread, *arguments]
    return _run([python, "-m", "pytest", *arguments], IGL_COMFYUI=str(comfy))


def serve(rest: Sequence[str]) -> int:
    """run ComfyUI with the pack until Ctrl-C; arguments go to ComfyUI"""
    parser = argparse.ArgumentParser(prog="dev.py server", add_help=False)
    parser.add_argument("--port", type=int)
    args, more = parser.parse_known_args(rest)
    python, comfy = set_up(dev=False)
    say("Starting ComfyUI")
    with server.start(python, comfy, base.prepare(), port=args.port, more=more) as running:
        say(f"ComfyUI with In-Graph LoRA: {running.url}  (Ctrl-C ends it)")
        try:
            return running.process.wait()
        except KeyboardInterrupt:
            say("Stopping ComfyUI")
            return 0


def lint(rest: Sequence[str]) -> int:
    """ruff and pyright for Python, TypeScript's checker for the page"""
    python, _ = set_up(dev=True)
    checks: list[list[object]] = [
        [python, "-m", "ruff", "check", *rest],
        [python, "-m", "pyright", "--pythonpath", python],
    ]
    try:
        checks.append(typescript.check_command(python))
    except SetupError as error:  # the one tool that PyPI does not have
        say(f"web/ is NOT checked: {error}")
    return max(_run(check) for check in checks)


def bench(rest: Sequence[str]) -> int:
    """run the benchmarks"""
    python, comfy = set_up(dev=False)
    return _run([python, "-m", "workbench.bench.run", *rest], IGL_COMFYUI=str(comfy))


def pack_bundle(rest: Sequence[str]) -> int:
    """collect what a CUDA machine without internet lacks to run the GPU tests"""
    python, comfy = set_up(dev=True)
    return bundle.main(rest, python, comfy)


def run_on_gpu(rest: Sequence[str]) -> int:
    """on such a machine: run the GPU tests and the benchmark, with this Python and a bundle"""
    return gpu.main(rest)


COMMANDS = {
    "demo": demo, "test": test, "server": serve, "lint": lint, "bench": bench, "bundle": pack_bundle,
    "gpu": run_on_gpu,
}  # fmt: skip


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unlike Ctrl-C reaches dev.py alone."""


def _run(command: Sequence[object], **env: str) -> int:
    """Runs a child that cleans up after itself: it may hold a server, so on a stop it gets time to end it."""
    child = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env={**os.environ, **KEPT_BYTECODE, **env}
    )
    try:
        return child.wait()
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):  # a Ctrl-C of the terminal has reached the child already
            child.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
        raise


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py", description="Work on In-Graph LoRA.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        commands.add_parser(name, help=function.__doc__, add_help=False)
    # `dev.py test -k name` hands everything after the command on as it is.
    args = parser.parse_args(argv[:1])
    signal.signal(signal.SIGTERM, _end)
    try:
        CACHE.mkdir(exist_ok=True)
        with full_disk_explained():
            return COMMANDS[args.command](argv[1:])
    except SetupError as error:
        print(f"dev.py {args.command}: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"dev.py {args.command}: {error.filename} is not writable for this user.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ndev.py {args.command}: stopped", file=sys.stderr)
        return 130


def _end(*_: object) -> None:
    """SIGTERM unwinds the stack like Ctrl-C does, so that a server is stopped and not left behind."""
    raise Terminated
