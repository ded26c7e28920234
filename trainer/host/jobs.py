"""Where a training comes from, and the job that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..config import TrainConfig
from ..data.records import Dataset
from ..events import Emit, Event, RunOpened
from ..jobs import IN_PROMPT, Graph, Job, manifest, needed
from .paths import comfyui_version


@dataclass(frozen=True, kw_only=True)
class Origin:
    graph: Graph
    """The whole prompt."""
    node: str
    """Train LoRA's id in it."""
    job: Job | None = None
    """That the training has to be."""

    @classmethod
    def of(cls, graph: Any, node: str | None, extra_pnginfo: Any) -> Origin | None:
        """By what ComfyUI tells a node. None outside of a prompt, or where another node made this one.
        Raises JobError."""
        if node is None or not isinstance(graph, Mapping) or node not in graph:
            return None
        job = extra_pnginfo.get(IN_PROMPT) if isinstance(extra_pnginfo, Mapping) else None
        return cls(graph=graph, node=node, job=Job.parsed(job, "the job") if job is not None else None)

    def kept(self, job: Job, emit: Emit) -> Emit:
        """The run's folder gets the job as soon as there is one."""

        def also(event: Event) -> None:
            if isinstance(event, RunOpened):
                job.write(event.path)
            emit(event)

        return also


def job_of(origin: Origin, config: TrainConfig, dataset: Dataset, models: Mapping[str, str]) -> Job:
    """models: as in `Job`. Raises what `Job.check_pictures` and `check_models` do where one is asked for."""
    if origin.job:
        origin.job.check_models(models)
        origin.job.check_pictures(dataset)
    from ... import __version__  # a script has the engine without the pack around it

    graph = needed(origin.graph, origin.node)
    graph[origin.node]["inputs"]["where"] = "here"
    return Job(
        name=config.name,
        node=origin.node,
        graph=graph,
        pictures=manifest(dataset),
        models=dict(models),
        versions={"in_graph_lora": __version__, "comfyui": comfyui_version(), "torch": torch.__version__},
    )
