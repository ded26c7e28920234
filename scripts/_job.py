"""Training a job's folder, alone or as one of several processes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _comfyui
import _processes
from _pack import PACK, code_digest

if TYPE_CHECKING:
    from in_graph_lora.trainer.jobs import Job

INTERRUPTED = 130


def train_job(folder: Path, comfyui: Path | None, options: Sequence[str]) -> int:
    """Exit code: 0 done, 1 with a sentence on stderr, 130 after Ctrl-C. options: ComfyUI's own."""
    from in_graph_lora.trainer.errors import JobError, TrainerError

    try:
        _processes.take_device(options)
    except JobError as error:
        print(error, file=sys.stderr)  # nobody else can: they have not met yet
        return 1
    try:
        with _processes.own_place(options) as own:
            if _processes.started() == 1:
                run_job(folder, comfyui, own, show)
            else:
                _run_with_others(folder, comfyui, own)
    except (TrainerError, _comfyui.GraphError) as error:
        _say(str(error))
        return 1
    except (_comfyui.Interrupted, KeyboardInterrupt):
        _say("stopped; the same command goes on")
        return INTERRUPTED
    return 0


def run_job(folder: Path, comfyui: Path | None, options: Sequence[str], told: _comfyui.Told) -> None:
    """Raises JobError, GraphError and Interrupted."""
    _run(*_prepared(folder, comfyui, options), told)


def run_graph(
    graph: Mapping[str, Any], node: str, comfyui: Path | None, options: Sequence[str], told: _comfyui.Told
) -> None:
    """Raises JobError, GraphError and Interrupted."""
    _host(graph, comfyui, options).run(graph, node, {}, told)


def _prepared(folder: Path, comfyui: Path | None, options: Sequence[str]) -> tuple[Job, _comfyui.Headless]:
    from in_graph_lora.trainer.errors import JobError
    from in_graph_lora.trainer.jobs import Job
    from in_graph_lora.trainer.sweep import is_sweep

    job = Job.read(folder)
    if is_sweep(job):
        raise JobError(f"{folder} is a sweep; train it by: python scripts/train_queue.py {folder.parent}")
    return job, _host(job.graph, comfyui, options)


def _host(graph: Mapping[str, Any], comfyui: Path | None, options: Sequence[str]) -> _comfyui.Headless:
    from in_graph_lora.trainer.errors import JobError

    host = _comfyui.Headless(_comfyui.folder(comfyui, PACK), options)
    unknown = sorted({n["class_type"] for n in graph.values()} - host.nodes().keys())
    if unknown:
        raise JobError(f"this ComfyUI has no node {', '.join(unknown)}; install the packs that have them")
    return host


def _run(job: Job, host: _comfyui.Headless, told: _comfyui.Told) -> None:
    from in_graph_lora.trainer.jobs import IN_PROMPT

    host.run(job.graph, job.node, {IN_PROMPT: job.content()}, told)


def _run_with_others(folder: Path, comfyui: Path | None, options: Sequence[str]) -> None:
    job = host = failure = None
    try:
        job, host = _prepared(folder, comfyui, options)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the others are told first
        failure = error
    from in_graph_lora.trainer.processes import Interrupted, join  # not before ComfyUI: they import torch

    processes = join()
    try:
        with processes.together():
            if failure is not None:
                raise failure
            assert job is not None
            assert host is not None
            versions = {
                "In-Graph LoRA": code_digest(),
                "ComfyUI": host.version(),
                "torch": host.torch_version(),
            }
            processes.check_same({**versions, "job": job.content()})
            _run(job, host, show if processes.main else _quiet)
            processes.wait()
    except Interrupted as end:
        raise _comfyui.Interrupted from end


def _say(message: str) -> None:
    """Once a machine; all do where one is gone, which may be that one."""
    if _processes.place() == 0 or "without a word" in message:
        print(message, file=sys.stderr)


def _quiet(event: str, data: Mapping[str, Any]) -> None:
    """The main process tells."""
    del event, data


def show(event: str, data: Mapping[str, Any]) -> None:
    """Steps, notices and the end of what Train LoRA tells the page."""
    if event == "executed" and "run" in (data.get("output") or {}):
        (run,) = data["output"]["run"]
        print(f"LoRA: {run['lora_path']}\nRun: {run['run_dir']}", flush=True)
    if event != "in_graph_lora.progress":
        return
    for notice in data.get("notices", ()):
        print(notice, flush=True)
    for step, loss, _ in data.get("points", ()):
        told = "not finite" if loss is None else f"{loss:.4f}"
        print(f"step {step}/{data['steps']}  loss {told}", flush=True)
