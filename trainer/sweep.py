"""A job with lists of values: one job for each combination, and the evidence of all side by side.

In a sweep's job.json a value is {"sweep": [1e-4, 3e-4]}; several of them give every combination.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from .errors import ConfigError, JobError
from .jobs import Graph, Job, linked, needed
from .options.checks import check_name

KEY = "sweep"
MOST = 1000
PICTURES = 500
"""Of the evidence, at most; fewer of each prompt where there are many jobs."""

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """One job of a sweep."""

    job: Job
    values: Values
    """Input → its value."""


def is_sweep(job: Job) -> bool:
    return bool(_lists(job))


def jobs_of(job: Job) -> list[Swept]:
    """Every combination, the last input fastest; names tell the values. Raises JobError."""
    lists = _lists(job)
    count = math.prod(len(values) for values in lists.values())
    if not 1 <= count <= MOST:
        raise JobError(f"the sweep of {job.name} has {count} trainings; choose 1 to {MOST}")
    found = [_one(job, dict(zip(lists, own, strict=True))) for own in itertools.product(*lists.values())]
    names = [swept.job.name.casefold() for swept in found]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise JobError(f"two trainings of the sweep of {job.name} are both called {twice}; change a value")
    return found


def _lists(job: Job) -> dict[tuple[str, str], Sequence[Any]]:
    """(node, input) → values. Raises JobError."""
    found = {}
    for node, content in job.graph.items():
        for name, value in content["inputs"].items():
            if not isinstance(value, dict) or value.keys() != {KEY}:
                continue
            values = value[KEY]
            if not isinstance(values, list) or not values or not all(map(_plain, values)):
                raise JobError(
                    f"the sweep of {name} in {job.name} is no list of values; write"
                    f' "{name}": {{"sweep": [value, value]}}'
                )
            found[node, name] = values
    return found


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _one(job: Job, chosen: Mapping[tuple[str, str], Any]) -> Swept:
    graph = {node: {**content, "inputs": dict(content["inputs"])} for node, content in job.graph.items()}
    for (node, name), value in chosen.items():
        graph[node]["inputs"][name] = value
    values = {
        # The node's number only where two nodes have an input of the same name.
        name if sum(n == name for _, n in chosen) == 1 else f"{name}_{node}": value
        for (node, name), value in chosen.items()
    }
    name = "_".join([job.name, *(f"{key}_{_told(value)}" for key, value in values.items() if key != "name")])
    if "name" in values:
        name = str(values["name"]) + name.removeprefix(job.name)
    try:
        graph[job.node]["inputs"]["name"] = check_name(name)
    except ConfigError as error:
        raise JobError(f"a job of the sweep of {job.name} cannot be named: {error}") from error
    swept = {node for node, _ in chosen}
    return Swept(
        job=replace(
            job,
            name=name,
            graph=graph,
            pictures={} if swept & _behind(job, "dataset") else job.pictures,
            models={m: "" if swept & _behind(job, m) else own for m, own in job.models.items()},
        ),
        values=values,
    )


def _told(value: Any) -> str:
    """A value within a file's name."""
    if isinstance(value, float):
        return f"{value:g}"
    text = PurePath(value).stem if isinstance(value, str) and value.endswith(".safetensors") else str(value)
    return re.sub(r"[^\w.+-]+", "-", text)[:40].strip("-.")


def _behind(job: Job, name: str) -> set[str]:
    """The nodes that an input of Train LoRA comes from."""
    link = linked(job.graph[job.node]["inputs"].get(name))
    return set(needed(job.graph, link)) if link else set()


def evidence(jobs: Sequence[Swept], loras: Sequence[str], prompts: Sequence[str] = ()) -> tuple[Graph, str]:
    """(graph, node) of one Evaluate LoRA over all of them: the same prompts and seeds, side by side.

    loras: their files, as Load LoRA lists them. prompts: default: those of Train Preview. Raises JobError
    where there are none, or the jobs have not one model.
    """
    job = jobs[0].job
    own = job.graph[job.node]["inputs"]
    preview = job.graph.get(linked(own.get("preview")), {}).get("inputs", {})
    if any(_of(other.job, name) != _of(job, name) for other in jobs for name in ("model", "clip", "vae")):
        raise JobError("the jobs of this sweep have not one model, so no report holds them side by side")
    told = "\n".join(prompts) or preview.get("prompts", "")
    if not told:
        raise JobError(
            "this sweep has no report side by side: its job has no Train Preview with prompts; give"
            " --prompt, once for each"
        )
    lines = len(told.splitlines()) if isinstance(told, str) else 4
    unrelated = preview.get("unrelated_prompts", "")
    lines += len(unrelated.splitlines()) if isinstance(unrelated, str) else 4
    columns = len(loras) + 1
    each = min(4, max(1, PICTURES // (columns * lines)))
    side = next(_resolutions(job), 512)
    inputs = {
        **{name: own[name] for name in ("model", "clip", "vae")},
        "prompts": told,
        "class_prompts": "",
        "unrelated_prompts": unrelated,
        "images_per_prompt": each,
        "max_pictures": columns * lines * each,
        "steps": preview.get("sampling_steps", 20),
        "width": preview.get("width") or side,
        "height": preview.get("height") or side,
        "lora_files": "\n".join(loras),
        **_defaults(preview, negative="", seed=0, cfg=7.0, sampler_name="euler", scheduler="normal"),
        **{
            name: preview[name]
            for name in ("clip_vision", "judge_folder", "max_drift", "max_copies", "held_out")
            if name in preview
        },
    }
    if all(_of(other.job, "dataset") == _of(job, "dataset") for other in jobs):
        inputs["dataset"] = own["dataset"]
    node = "evidence"
    graph = {**job.graph, node: {"class_type": "EvaluateLoRA", "inputs": inputs}}
    return needed(graph, node), node


def _of(job: Job, name: str) -> Any:
    """All that an input of Train LoRA comes from."""
    return [job.graph[node] for node in sorted(_behind(job, name))]


def _resolutions(job: Job) -> Iterator[int]:
    for node in sorted(_behind(job, "dataset")):
        value = job.graph[node]["inputs"].get("resolution")
        if type(value) is int:
            yield value


def _defaults(values: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    return {name: values.get(name, default) for name, default in defaults.items()}
