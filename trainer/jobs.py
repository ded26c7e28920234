"""A training as a file: the graph that loads its models and data, and what these were when it was written.

    <job>/job.json

A job trains on any machine whose ComfyUI has the same models and pictures under the same names. Each run's
folder has one too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .data.records import Dataset
from .errors import DatasetError, JobError, ModelError, shortened
from .files import read_json, write_json

FILE = "job.json"
FORMAT = 1
"""Counts up when an older version would misread the file."""

IN_PROMPT = "in_graph_lora_job"
"""In a prompt's extra_pnginfo: `Job.content` of what is being trained."""

Graph = Mapping[str, Mapping[str, Any]]
"""ComfyUI's API format: node id → {class_type, inputs}."""


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    """Of the LoRA."""
    node: str
    """Id of the Train LoRA in `graph`."""
    graph: Graph
    """That node and all that it needs."""
    pictures: Mapping[str, str]
    """Path below the folder that they share → digest of the record; see `manifest`. Empty where it is not
    known."""
    models: Mapping[str, str]
    """model, clip and vae → fingerprint; empty where it is not known."""
    versions: Mapping[str, str]
    """Of what it was written with, by its name."""

    def write(self, folder: Path) -> Path:
        """Raises StorageError."""
        path = folder / FILE
        write_json(path, self.content())
        return path

    def content(self) -> dict[str, Any]:
        """As JSON; `parsed` is the inverse."""
        return {"format": FORMAT, **asdict(self)}

    def write_new(self, folder: Path) -> Path:
        """Into `<folder>/<name>`, or `<name>_2`, …; a job that is there already is not written again."""
        n = 1
        while True:
            own = folder / f"{self.name}{f'_{n}' if n > 1 else ''}"
            if not own.exists():
                return self.write(own)
            if read_json(own / FILE) == self.content():
                return own / FILE
            n += 1

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Raises JobError."""
        path = folder if folder.suffix == ".json" else folder / FILE
        content = read_json(path)
        if content is None:
            raise JobError(f"{path} is missing or no whole JSON file; write the job again with Train LoRA")
        return cls.parsed(content, str(path))

    @classmethod
    def parsed(cls, content: Any, name: str) -> Job:
        """name: for messages. Raises JobError."""
        written = content.get("format") if isinstance(content, dict) else None
        if type(written) is not int:
            raise JobError(f"{name} is no job of In-Graph LoRA; write one with Train LoRA, where = job")
        if written > FORMAT:
            raise JobError(
                f"{name} has format {written} and this version of In-Graph LoRA reads up to {FORMAT}; update"
                " it on this machine"
            )
        own = {key: value for key, value in content.items() if key != "format"}
        if own.keys() != {f.name for f in fields(cls)} or not _whole(own):
            raise JobError(f"{name} was changed by hand or is damaged; write the job again with Train LoRA")
        return cls(**own)

    def check_pictures(self, dataset: Dataset) -> None:
        """Raises DatasetError where they are not those of the job, by name."""
        if not self.pictures:
            return
        there = manifest(dataset)
        changed = [name for name in self.pictures if there.get(name, "") not in ("", self.pictures[name])]
        missing = [name for name in self.pictures if name not in there]
        new = [name for name in there if name not in self.pictures]
        found = (("changed", changed), ("missing", missing), ("new", new))
        if told := [f"{what}: {shortened(names)}" for what, names in found if names]:
            raise DatasetError(
                "pictures or captions are not those that the job was written with"
                f" ({'; '.join(told)}); bring them back, or write the job again"
            )

    def check_models(self, models: Mapping[str, str]) -> None:
        """models: fingerprints, as in the job. Raises ModelError."""
        other = [name for name, own in self.models.items() if own and models.get(name) not in ("", own)]
        if other:
            raise ModelError(
                f"{' and '.join(other)} are not what the job was written with: a file of this name has other"
                " weights here; bring the same files, or write the job again"
            )


def manifest(dataset: Dataset) -> dict[str, str]:
    """Path below the folder that all pictures share, with "/" → digest of all that is said of it."""
    paths = [r.path.absolute() for r in dataset.records]
    try:
        shared = Path(os.path.commonpath([p.parent for p in paths]))
    except ValueError:  # Windows: on several drives, or no picture at all
        paths, shared = [p.relative_to(p.anchor) for p in paths], Path()
    out: dict[str, list[str]] = {}
    for path, record in zip(paths, dataset.records, strict=True):
        out.setdefault(path.relative_to(shared).as_posix(), []).append(record.identity)
    return {name: hashlib.sha256("\n".join(ids).encode()).hexdigest() for name, ids in out.items()}


def needed(graph: Graph, node: str) -> dict[str, dict[str, Any]]:
    """The part of a graph that `node` needs, itself among it."""
    out: dict[str, dict[str, Any]] = {}
    left = [node]
    while left:
        key = left.pop()
        if key in out or key not in graph:
            continue
        own = graph[key]
        out[key] = {"class_type": own["class_type"], "inputs": dict(own["inputs"])}
        left += [link for link in map(linked, own["inputs"].values()) if link]
    return {key: out[key] for key in graph if key in out}


def linked(value: Any) -> str:
    """Id of the node that an input comes from; "" for a value."""
    is_link = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return value[0] if is_link and isinstance(value[0], str) and type(value[1]) is int else ""


def _whole(content: Mapping[str, Any]) -> bool:
    maps = ("graph", "pictures", "models", "versions")
    if not all(isinstance(content[name], dict) for name in maps):
        return False
    texts = [content["name"], content["node"], *(v for m in maps[1:] for v in content[m].values())]
    nodes = content["graph"].values()
    return (
        all(isinstance(text, str) for text in texts)
        and all(
            isinstance(n, dict) and isinstance(n.get("class_type"), str) and isinstance(n.get("inputs"), dict)
            for n in nodes
        )
        and content["graph"].get(content["node"], {}).get("class_type") == "TrainLoRA"
    )
