"""What is sent elsewhere: a graph, and the files here that it reads."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.clips import CLIP_SUFFIXES
from ..data.formats import SUFFIXES
from ..data.metadata import METADATA_NAMES, SIDECAR_SUFFIXES
from ..errors import DatasetError, JobError, shortened
from ..files import read_json
from ..jobs import FILE, IN_PROMPT, Job
from ..text import lines
from .workflow import to_prompt

Json = dict[str, Any]

TRAINER = "TrainLoRA"
FOLDERS = ("folder", "class_folder", "mask_folder", "control_folder")
"""Inputs of Load Dataset; the last has a folder a line."""
PLACE = "in-graph-lora"
"""Below the other ComfyUI's input folder."""
MODEL_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf")


@dataclass(frozen=True)
class Upload:
    """A file here, and where it goes below the other's input folder."""

    path: Path
    subfolder: str
    name: str


@dataclass(frozen=True)
class Work:
    graph: dict[str, Json]
    """In the API format, with the paths that its files have there."""
    uploads: list[Upload]
    extra: Json = field(default_factory=dict)
    """extra_pnginfo."""
    notes: list[str] = field(default_factory=list)


def read_workflow(path: Path) -> Json:
    """A saved workflow, a graph in the API format, or a job's file or folder. Raises JobError."""
    if path.is_dir():
        path = path / FILE
    if not path.exists():
        raise JobError(f"{path} is not there; give a workflow's JSON file, or the folder of a job")
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("prompt"), dict):
        content = content["prompt"]
    known = isinstance(content, dict) and (
        isinstance(content.get("nodes"), list) or "graph" in content or _is_graph(content)
    )
    if not known:
        raise JobError(f"{path} is no workflow; save one with Save or Export (API) and give its JSON file")
    if "graph" in content and not _is_graph(content):
        Job.parsed(content, str(path))
    return content


def prepared(content: Json, object_info: Mapping[str, Any], inputs: Sequence[Path]) -> Work:
    """inputs: folders that relative paths are looked for in. Raises JobError, DatasetError."""
    notes: list[str] = []
    extra: Json = {}
    if "nodes" in content and isinstance(content["nodes"], list):
        graph = _converted(content, object_info)
    elif "graph" in content and not _is_graph(content):
        graph, extra = copy.deepcopy(content["graph"]), {IN_PROMPT: content}
    else:
        graph = copy.deepcopy(content)
    if unknown := sorted({node["class_type"] for node in graph.values()} - object_info.keys()):
        raise JobError(f"the worker has no node {', '.join(unknown)}; install the packs that have them there")
    trainers = [node for node in graph.values() if node["class_type"] == TRAINER]
    if not trainers:
        raise JobError("the workflow has no Train LoRA, so there is nothing to train")
    for node in trainers:
        if node["inputs"].get("where", "here") != "here":
            node["inputs"]["where"] = "here"
            notes.append("Train LoRA says where = job; it is trained on the worker instead")
    _check_models(graph, object_info)
    uploads = list(_moved(graph, object_info, inputs, notes))
    return Work(graph, uploads, extra, notes)


def _converted(content: Json, object_info: Mapping[str, Any]) -> dict[str, Json]:
    try:
        return to_prompt(content, dict(object_info))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise JobError(
            f"the workflow's file is damaged ({type(error).__name__}: {error}); save it again"
        ) from error


def _is_graph(content: Json) -> bool:
    nodes = content.values()
    return bool(content) and all(
        isinstance(n, dict) and isinstance(n.get("class_type"), str) and isinstance(n.get("inputs"), dict)
        for n in nodes
    )


def _check_models(graph: Mapping[str, Json], object_info: Mapping[str, Any]) -> None:
    """Before anything is uploaded: are the files there that loaders choose from a list?"""
    for node in graph.values():
        for name, value in node["inputs"].items():
            choices = _choices(object_info[node["class_type"]], name)
            is_model = isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES)
            if choices is None or not is_model or value in choices:
                continue
            there = f"it has {shortened(map(str, choices), 20)}" if choices else "it has none"
            raise JobError(
                f"the worker has no {value} ({node['class_type']}, {name}; {there}); put the file into its"
                " models folder, or choose one that it has"
            )


def _definition(info: Mapping[str, Any], name: str) -> Sequence[Any]:
    for group in ("required", "optional"):
        found = (info.get("input", {}).get(group) or {}).get(name)
        if found is not None:
            return found
    return ()


def _choices(info: Mapping[str, Any], name: str) -> list[Any] | None:
    """Of a combo; None for another input."""
    match _definition(info, name):
        case [list() as choices, *_]:
            return choices
        case ["COMBO", {"options": list() as choices}, *_]:
            return choices
    return None


def _takes_uploads(info: Mapping[str, Any], name: str) -> bool:
    match _definition(info, name):
        case [_, dict() as options, *_]:
            return any(options.get(f"{kind}_upload") for kind in ("image", "video", "audio", "file"))
    return False


def _moved(
    graph: Mapping[str, Json], object_info: Mapping[str, Any], inputs: Sequence[Path], notes: list[str]
) -> Iterator[Upload]:
    """Puts the paths there in the place of those here, and gives the files. The same folder goes once."""
    done: dict[Path, str] = {}
    for node in graph.values():
        own, info = node["inputs"], object_info[node["class_type"]]
        for name, value in list(own.items()):
            if not isinstance(value, str) or not value.strip() or value.startswith(f"{PLACE}/"):
                continue  # the last: a run that was fetched has the paths there
            if node["class_type"] == "LoadDataset" and name in FOLDERS:
                there = []
                for typed in lines(value) if name == "control_folder" else [value]:
                    path = _here(typed, inputs, name)
                    if path not in done:
                        done[path], uploads = _dataset(path, notes)
                        yield from uploads
                    there.append(done[path])
                own[name] = "\n".join(there)
            elif _takes_uploads(info, name) and "[" not in value:
                path = _here(value, inputs, name)
                subfolder = f"{PLACE}/{_digest([(path.name, path)])}"
                yield Upload(path, subfolder, path.name)
                own[name] = f"{subfolder}/{path.name}"


def _here(typed: str, inputs: Sequence[Path], name: str) -> Path:
    text = typed.strip().strip('"').strip()
    try:
        path = Path(text).expanduser()
        tried = [path] if path.is_absolute() else [folder / path for folder in inputs]
        found = next((p.resolve() for p in tried if p.exists()), None)
    except (OSError, RuntimeError, ValueError) as error:
        raise DatasetError(f"{typed!r}: is not a usable path ({error}); type it again") from error
    if found is None:
        raise DatasetError(
            f"{name} {text} is not on this machine (looked at {shortened(map(str, tried))}); give the folder"
            " that relative paths start from by --input"
        )
    return found


def _dataset(path: Path, notes: list[str]) -> tuple[str, list[Upload]]:
    """Its path there, and its files. Named by content: what was changed goes to another folder, and what is
    there already is whole or is sent again."""
    if path.is_file():
        if path.suffix.lower() != ".zip":
            raise DatasetError(
                f"{path} is another trainer's dataset file, which names folders of this machine; give the"
                " folder of the pictures"
            )
        subfolder = f"{PLACE}/{_digest([(path.name, path)])}"
        return f"{subfolder}/{path.name}", [Upload(path, subfolder, path.name)]
    files = sorted(_files(path, notes))
    if not files:
        raise DatasetError(f"{path}: the folder holds no pictures; put JPEG, PNG or WebP files into it")
    top = f"{PLACE}/{_digest(files)}/{path.name or 'dataset'}"
    return top, [
        Upload(file, "/".join([top, *name.split("/")[:-1]]), name.rpartition("/")[2]) for name, file in files
    ]


def _files(folder: Path, notes: list[str]) -> Iterator[tuple[str, Path]]:
    """(path below the folder with "/", file) of what Load Dataset may read in it."""
    wanted = SUFFIXES | CLIP_SUFFIXES | set(SIDECAR_SUFFIXES) | {".json", ".jsonl", ".parquet"}
    left: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or not (path.suffix.lower() in wanted or name.lower() in METADATA_NAMES):
                continue
            if not path.is_file() or not path.resolve().is_relative_to(folder):
                left.append(name)  # a link may lead to private files
                continue
            yield path.relative_to(folder).as_posix(), path
    if left:
        notes.append(
            f"left out, since they are links that lead out of {folder.name} or to nothing: {shortened(left)}"
        )


def _digest(files: Sequence[tuple[str, Path]]) -> str:
    """Of names and contents. Raises DatasetError."""
    h = hashlib.sha256()
    for name, path in files:
        own = hashlib.sha256(name.encode("utf-8", "surrogatepass"))
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    own.update(block)
        except OSError as error:
            raise DatasetError(f"{path} cannot be read ({error.strerror}); make it readable") from error
        h.update(own.digest())
    return h.hexdigest()[:16]
