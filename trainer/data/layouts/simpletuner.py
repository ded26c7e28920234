"""SimpleTuner's multidatabackend.json: a list of folders, each with its settings.

Its `repeats` counts how often a picture is shown again: 0 is once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DatasetError, shortened
from ..records import Problem
from .source import (
    MAX_REPEATS,
    Source,
    folder_named,
    parse_json,
    read_config,
    resolution_of,
    whole_number,
)

NAME = "multidatabackend.json"
_HERE = frozenset(
    {
        "id", "type", "instance_data_dir", "dataset_type", "disabled", "disable", "repeats", "resolution",
        "resolution_type", "caption_strategy", "instance_prompt", "only_instance_prompt", "crop",
        "crop_style", "is_regularisation_data", "is_regularization_data",
    }
)  # fmt: skip
_OF_ITS_CACHE = ("cache_dir", "metadata_backend", "skip_file_discovery", "write_batch_size", "vae_cache")


def recognises(path: Path) -> bool:
    return (path / NAME).is_file() or (path.suffix.lower() == ".json" and path.is_file())


def read(path: Path, problems: list[Problem]) -> list[Source]:
    inside = path if path.is_dir() else None
    path = path / NAME if inside else path
    config = read_config(path, parse_json)
    if not isinstance(config, list) or not all(isinstance(entry, dict) for entry in config):
        raise DatasetError(f"{path.name}: is not a list of datasets as SimpleTuner writes it; correct it")
    found: list[Source] = []
    unused: dict[str, None] = {}
    for i, entry in enumerate(config, 1):
        where = f"{path.name}: {entry.get('id') or f'entry {i}'}"
        kind = entry.get("dataset_type", "image")
        if entry.get("disabled") or entry.get("disable") or kind in ("text_embeds", "image_embeds"):
            continue
        if kind != "image" or entry.get("type", "local") != "local":
            reason = f"{entry.get('id')!r} is a dataset of type {entry.get('type')!r}, {kind!r}; only local"
            problems.append(Problem(path=path, reason=f"{reason} folders of pictures are read"))
            continue
        unused.update(dict.fromkeys(k for k in entry if k not in _HERE and not k.startswith(_OF_ITS_CACHE)))
        source = _source(entry, path, where)
        # A folder from elsewhere must not lead to private files, whose captions end up in the LoRA.
        if inside and not source.folder.resolve().is_relative_to(inside.resolve()):
            raise DatasetError(
                f"{where}: names {source.folder}, which is outside of the folder; type the path"
                f" of {NAME} itself to read it"
            )
        found.append(source)
    if unused:
        reason = f"these settings have no counterpart here and are not used: {shortened(sorted(unused), 12)}"
        problems.append(Problem(path=path, reason=reason, skipped=False))
    if not found:
        raise DatasetError(f"{path.name}: names no local folder of pictures that is not disabled")
    return found


def _source(entry: Mapping[str, Any], path: Path, where: str) -> Source:
    strategy = entry.get("caption_strategy", "textfile")
    prompt = entry.get("instance_prompt") or ""
    if strategy not in ("textfile", "filename", "instanceprompt"):
        raise DatasetError(
            f"{where}: caption_strategy is {strategy!r}; textfile, filename and instanceprompt are read"
        )
    if not isinstance(prompt, str):
        raise DatasetError(f"{where}: instance_prompt is {prompt!r}; write a text")
    given = strategy == "instanceprompt" or bool(entry.get("only_instance_prompt"))
    if given and not prompt.strip():
        raise DatasetError(f"{where}: its captions are the instance_prompt, which is empty; write one")
    framing: dict[str, Any] = {}
    if "resolution" in entry:
        framing["resolutions"] = (_resolution(entry, where),)
    if entry.get("crop") is False:
        framing["crop"] = "none"
    elif entry.get("crop_style") == "random":
        framing["crop"] = "random"
    regular = entry.get("is_regularisation_data") or entry.get("is_regularization_data")
    return Source(
        folder=folder_named(entry.get("instance_data_dir"), path, f"instance_data_dir of {where}"),
        nested=True,
        repeats=1 + whole_number(entry.get("repeats", 0), 0, MAX_REPEATS - 1, f"{where}: repeats"),
        role="class" if regular else None,
        caption_suffixes=(".txt",),
        caption=prompt.strip() if given else "",
        caption_from="given" if given else "name" if strategy == "filename" else "files",
        framing=framing,
        config=path,
    )


def _resolution(entry: Mapping[str, Any], where: str) -> int:
    """ "area" counts megapixels, the others the pixels of a side."""
    value, kind = entry["resolution"], entry.get("resolution_type", "area")
    if kind == "area":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 64:
            raise DatasetError(f"{where}: resolution is {value!r}; use megapixels, for example 1.0")
        # A megapixel counts as 1024 x 1024, so that 1.0 trains at 1024, as is meant.
        return round(1024 * math.sqrt(value))
    return resolution_of(value, f"{where}: resolution")
