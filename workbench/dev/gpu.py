"""`python dev.py gpu --bundle FOLDER`: the tests marked gpu and the benchmark on a machine without internet.

Uses the Python that it is started with. Most important first; what the results hold is not done again, so
that a second call goes on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import ROOT
from . import comfyui
from .results import Results
from .steps import SetupError, say

PLAIN, DYNAMIC = False, True
TESTS = (
    ("test_gradients", PLAIN, 240),
    ("test_given_back", DYNAMIC, 180),
    ("test_gradients", DYNAMIC, 240),
    ("test_given_back", PLAIN, 180),
    ("test_streaming", PLAIN, 120),
    ("test_plan", PLAIN, 90),
    ("test_edit_models", PLAIN, 60),
    ("test_plan", DYNAMIC, 90),
    ("test_patched_models", DYNAMIC, 120),
    ("test_activations", PLAIN, 60),
    ("test_lowvram", PLAIN, 60),
    ("test_room_for_previews", DYNAMIC, 60),
    ("test_speed", DYNAMIC, 90),
    ("test_runs", PLAIN, 180),
    ("test_runs", DYNAMIC, 180),
    ("test_speed", PLAIN, 90),
    ("test_patched_models", PLAIN, 120),
    ("test_room_for_previews", PLAIN, 60),
    ("test_captions", PLAIN, 60),
    ("test_captions", DYNAMIC, 60),
)
"""Files of tests/gpu in the order in which they run, with dynamic VRAM or without it, and seconds that each
may take."""

BAD = ("failed", "killed", "broken")
"""broken: a process that did not come as far as its first entry; it is tried again by the next call."""

TIMED_OUT = -9
"""Exit code of what was ended after its time."""
LEAST = 30
"""Seconds under which nothing new is begun."""
PATIENCE = 4
"""How many times as long the tests may take where there is no GPU."""


@dataclass(frozen=True)
class Item:
    """What runs in one process, and writes its own results."""

    title: str
    arguments: Sequence[str]
    """After `python`."""
    limit: float
    finished: Callable[[Results], bool]
    environment: dict[str, str] = field(default_factory=dict)


def main(rest: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py gpu", description="Run the GPU tests and the benchmark.")
    parser.add_argument("--bundle", type=Path, required=True, help="what `dev.py bundle` made")
    parser.add_argument("--minutes", type=float, default=25, help="of the whole call")
    parser.add_argument("--only", choices=["tests", "bench"])
    parser.add_argument("--results", type=Path, help="default: results.json in the bundle's folder")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: run the tests on the CPU")
    args = parser.parse_args(rest)
    end = time.monotonic() + 60 * args.minutes
    environment = prepared(args.bundle.resolve())
    results = Results((args.results or args.bundle / "results.json").resolve())
    results.path.parent.mkdir(parents=True, exist_ok=True)
    gpu = machine(results, environment)
    if args.rehearse:
        environment["IGL_REHEARSE_GPU"] = "1"
    if not gpu:
        environment["OMP_NUM_THREADS"] = "1"
    environment["IGL_RESULTS"] = str(results.path)
    items = [] if args.only == "bench" else tests(gpu=gpu)
    items += [] if args.only == "tests" else benchmark(environment, tiny=not gpu)
    left = run_all(items, results, environment, end)
    return summary(results, left)


def prepared(bundle: Path) -> dict[str, str]:
    """Unpacks the bundle, once, and returns the environment of all that uses it."""
    about_file = bundle / "bundle.json"
    if not about_file.exists():
        raise SetupError(f"{bundle} is no bundle; make one where there is internet: dev.py bundle FOLDER")
    about = json.loads(about_file.read_text(encoding="utf-8"))
    check_machine(about)
    site, comfy = bundle / "site", bundle / "ComfyUI"
    if not site.exists():
        say("Installing the bundle's wheels")
        part = bundle / "site.part"
        shutil.rmtree(part, ignore_errors=True)
        wheels = sorted(map(str, (bundle / "wheels").glob("*.whl")))
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile",
                   "--quiet", "--disable-pip-version-check", "--target", str(part), *wheels]  # fmt: skip
        env = {k: v for k, v in os.environ.items() if k != "PIP_FIND_LINKS"}
        if subprocess.call(command, env=env):
            raise SetupError("pip could not install the bundle's wheels; its own words above say why")
        part.rename(site)
    if not comfy.exists():
        comfyui.unpack(bundle / "ComfyUI.tar.xz", "ComfyUI", comfy)
    return {
        **os.environ,
        "PYTHONPATH": str(site),
        "PYTHONUNBUFFERED": "1",
        "IGL_COMFYUI": str(comfy),
        "IGL_STAND_INS": "1",
    }


def check_machine(about: dict[str, Any]) -> None:
    own = ".".join(map(str, sys.version_info[:2]))
    if own != about["python"]:
        raise SetupError(
            f"the bundle was made for Python {about['python']} and this is {own}; start dev.py with that one,"
            f" or make the bundle with --python {own}"
        )
    missing = [name for name in about["expected"] if not _installed(name)]
    if missing:
        raise SetupError(
            f"this Python lacks {', '.join(missing)}, which a bundle expects; start dev.py with the Python"
            " that has torch"
        )


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


_ASK = """
import json, torch
gpu = torch.cuda.is_available()
said = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": None}
if gpu:
    p = torch.cuda.get_device_properties(0)
    said |= {"gpu": p.name, "memory": p.total_memory, "capability": [p.major, p.minor]}
print(json.dumps(said))
"""


def machine(results: Results, environment: dict[str, str]) -> bool:
    """Writes down what this machine is. Returns whether it has a GPU."""
    done = subprocess.run([sys.executable, "-c", _ASK], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"torch does not start: {(done.stderr.splitlines() or ['it said nothing'])[-1]}")
    said = json.loads(done.stdout.splitlines()[-1])
    results.put("machine", "told", python=sys.version.split()[0], cores=os.cpu_count(), **said)
    say(f"torch {said['torch']}, {said['gpu'] or 'no CUDA device: tests are skipped, the benchmark is tiny'}")
    return bool(said["gpu"])


def tests(*, gpu: bool) -> list[Item]:
    """Without a GPU dynamic VRAM cannot be had, and its half is left out."""
    patience = 1 if gpu else PATIENCE
    options = ["-q", "-p", "no:cacheprovider", f"--timeout={150 * patience}", "--tb=short"]
    items = []
    for name, dynamic, limit in TESTS:
        if dynamic and not gpu:
            continue
        title = f"tests/gpu/{name}.py" + (" (dynamic VRAM)" if dynamic else "")
        items.append(
            Item(
                title=title,
                arguments=["-m", "pytest", f"tests/gpu/{name}.py", *options],
                limit=limit * patience,
                finished=lambda results, title=title: results.done(title),
                environment={"IGL_DYNAMIC_VRAM": "1"} if dynamic else {},
            )
        )
    return items


def benchmark(environment: dict[str, str], *, tiny: bool) -> list[Item]:
    """One process for each model and trainer; it holds several cases."""
    command = [sys.executable, "-m", "workbench.bench.plan", *(["--tiny"] if tiny else [])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"the benchmark has no plan: {done.stderr.strip().splitlines()[-1]}")
    return [
        Item(
            title=task["title"],
            arguments=["-m", "workbench.bench.case", json.dumps(task)],
            limit=task["limit"],
            finished=lambda results, task=task: all(results.done(case["name"]) for case in task["cases"]),
        )
        for task in json.loads(done.stdout)
    ]


def run_all(items: Sequence[Item], results: Results, environment: dict[str, str], end: float) -> list[str]:
    """Runs what is not done yet until the time is over. Returns the titles of what is left."""
    left = []
    for item in items:
        # A process that dies takes one entry with it; the others of the item get another process.
        while not item.finished(results):
            seconds = min(item.limit, end - time.monotonic())
            if seconds < min(LEAST, item.limit):
                left.append(item.title)
                break
            begun = time.monotonic()
            say(f"{item.title} (at most {seconds:.0f} s)")
            code = run(item.arguments, {**environment, **item.environment}, seconds)
            results.reload()
            took = time.monotonic() - begun
            if (dead := results.bury()) and not item.finished(results):
                say(f"{', '.join(dead)}: killed after {took:.0f} s")
                continue
            if not item.finished(results):
                if code == TIMED_OUT and time.monotonic() > end - LEAST:  # it had less than it may take
                    left.append(item.title)
                    break
                # 5: all was skipped before it began.
                outcome = {0: "passed", 1: "failed", 5: "skipped"}.get(code, "broken")
                results.put(item.title, outcome, code=code, seconds=round(took, 1))
                break
    return left


def run(arguments: Sequence[str], environment: dict[str, str], seconds: float) -> int:
    """Exit code; after its time the process is ended with all that it has started."""
    group: dict[str, Any] = {"start_new_session": True} if os.name != "nt" else {}
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, **group)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        if process.poll() is None:
            if group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()


def summary(results: Results, left: Sequence[str]) -> int:
    """0: all is well; 1: something failed; 2: nothing failed, but time ran out."""
    results.reload()
    outcomes: dict[str, list[str]] = {}
    for name, entry in results.entries.items():
        outcomes.setdefault(entry["outcome"], []).append(name)
    for outcome in BAD:
        for name in outcomes.get(outcome, ()):
            why = str(results.entries[name].get("why", "")).strip().splitlines()
            say(f"{outcome}: {name} {why[-1][:200] if why else ''}")
    counted = ", ".join(f"{len(names)} {outcome}" for outcome, names in outcomes.items() if outcome != "told")
    say(f"{counted or 'nothing was run'}; {results.path}; the table: dev.py bench --table FILE")
    if left:
        say(f"Time is over; the same command goes on with {', '.join(left)}")
    bad = any(outcomes.get(outcome) for outcome in BAD)
    return 1 if bad else 2 if left else 0
