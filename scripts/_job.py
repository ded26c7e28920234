"""Training a job's folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _comfyui

PACK = Path(__file__).resolve().parent.parent
INTERRUPTED = 130


def train_job(folder: Path, comfyui: Path | None, options: Sequence[str]) -> int:
    """Exit code: 0 done, 1 with a sentence on stderr, 130 after Ctrl-C. options: ComfyUI's own."""
    from in_graph_lora.trainer.errors import JobError

    try:
        run_job(folder, comfyui, options, show)
    except (JobError, _comfyui.GraphError) as error:
        print(error, file=sys.stderr)
        return 1
    except _comfyui.Interrupted:
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def run_job(folder: Path, comfyui: Path | None, options: Sequence[str], told: _comfyui.Told) -> None:
    """Raises JobError, GraphError and Interrupted."""
    from in_graph_lora.trainer.errors import JobError
    from in_graph_lora.trainer.jobs import Job
    from in_graph_lora.trainer.sweep import is_sweep

    job = Job.read(folder)
    if is_sweep(job):
        raise JobError(f"{folder} is a sweep; train it by: python scripts/train_queue.py {folder.parent}")
    run_graph(job.graph, job.node, comfyui, options, told, {"in_graph_lora_job": job.content()})


def run_graph(
    graph: Mapping[str, Any],
    node: str,
    comfyui: Path | None,
    options: Sequence[str],
    told: _comfyui.Told,
    extra: Mapping[str, Any],
) -> None:
    """Raises JobError, GraphError and Interrupted."""
    from in_graph_lora.trainer.errors import JobError

    host = _comfyui.Headless(_comfyui.folder(comfyui, PACK), options)
    unknown = sorted({n["class_type"] for n in graph.values()} - host.nodes().keys())
    if unknown:
        raise JobError(f"this ComfyUI has no node {', '.join(unknown)}; install the packs that have them")
    host.run(graph, node, extra, told)


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
