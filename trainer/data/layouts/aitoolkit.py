"""The job file of ai-toolkit: `config`, `process`, `datasets`, in YAML.

Read is what says which pictures are trained and how they are cut. What belongs to the training itself is
named, with the node that has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DatasetError, shortened
from ...safe_yaml import loads
from ..records import Problem
from .source import MAX_REPEATS, Source, folder_named, read_config, resolution_of, whole_number

MAX_BYTES = 500_000

_HERE = frozenset(
    {
        "folder_path", "dataset_path", "caption_ext", "caption_type", "default_caption", "trigger_word",
        "num_repeats", "is_reg", "resolution", "random_crop", "flip_x", "alpha_mask", "mask_path",
        "control_path", "control_path_1", "control_path_2", "control_path_3", "loss_multiplier", "type",
    }
)  # fmt: skip
_NODES = {
    "caption_dropout_rate": "Train Objective",
    "shuffle_tokens": "Train Objective",
    "keep_tokens": "Train Objective",
    "token_dropout_rate": "Train Objective",
    "mask_min_value": "Train Objective",
    "batch_size": "Train LoRA",
    "num_frames": "Video Clips",
    "fps": "Video Clips",
    "shrink_video_to_frames": "Video Clips",
    "do_i2v": "Video Clips",
}
"""Settings that another node has."""
_NO_LOSS = (
    "cache_",
    "num_workers",
    "prefetch_factor",
    "buckets",
    "bucket_tolerance",
    "fast_image_size",
    "debug",
)
"""How it works, not what is trained."""


def recognises(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml") and path.is_file()


def read(path: Path, problems: list[Problem]) -> list[Source]:
    config = read_config(path, loads, MAX_BYTES)
    found = list[Source]()
    unused: dict[str, None] = {}
    for i, (entry, trigger) in enumerate(_datasets(config, path), 1):
        where = f"dataset {i}"
        # Off, empty and 0 are what would be without the line.
        set_here = [k for k, v in entry.items() if v and not str(k).startswith(_NO_LOSS)]
        unused.update(
            dict.fromkeys(k for k in set_here if k not in _HERE and (k, entry[k]) != ("num_frames", 1))
        )
        found.append(_source(entry, trigger, path, where))
    if unused:
        names = (f"{k} (set it on {_NODES[k]})" if k in _NODES else str(k) for k in sorted(unused, key=str))
        reason = f"these settings of its datasets are not used: {shortened(names, 12)}"
        problems.append(Problem(path=path, reason=reason, skipped=False))
    return found


def _datasets(config: Any, path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(settings, trigger word of its process) of each dataset."""
    job = config.get("config") if isinstance(config, dict) else None
    processes = job.get("process") if isinstance(job, dict) else None
    any_found = False
    for process in processes if isinstance(processes, list) else ():
        entries = process.get("datasets") if isinstance(process, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, dict):
                raise DatasetError(
                    f"{path.name}: {entry!r:.80} under datasets is no list of settings; correct it"
                )
            any_found = True
            yield entry, process.get("trigger_word") or ""
    if not any_found:
        raise DatasetError(
            f"{path.name}: has no datasets under config and process, where ai-toolkit has them; give the"
            " file of a training, or the folder"
        )


def _source(entry: Mapping[str, Any], trigger: Any, path: Path, where: str) -> Source:
    def known(name: str, default: Any) -> Any:
        value = entry.get(name)
        value = default if value is None else value
        if not isinstance(value, type(default)):
            wanted = "true or false" if isinstance(default, bool) else "a text"
            raise DatasetError(f"{path.name}: {name} of {where} is {value!r}; write {wanted}")
        return value

    if known("type", "image") not in ("image", "sd"):
        raise DatasetError(
            f"{path.name}: {where} is of type {entry['type']!r}; datasets of pictures are read"
        )
    framing: dict[str, Any] = {}
    if (resolution := entry.get("resolution")) is not None:
        # A list trains each picture at each of them.
        sides = resolution if isinstance(resolution, list) and resolution else [resolution]
        framing["resolutions"] = tuple(
            resolution_of(side, f"{path.name}: resolution of {where}") for side in sides
        )
    if known("random_crop", False):
        framing["crop"] = "random"
    if known("flip_x", False):
        framing["flip"] = True
    if known("alpha_mask", False):
        framing["alpha_mask"] = True
    weight = entry.get("loss_multiplier", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e6:
        raise DatasetError(f"{path.name}: loss_multiplier of {where} is {weight!r}; write a number above 0")
    suffix = "." + (known("caption_type", "") or known("caption_ext", "txt")).strip().lstrip(".").lower()
    if suffix == ".json":
        raise DatasetError(f"{path.name}: captions of {where} are JSON files; save them as .txt")
    own = known("trigger_word", "") or trigger
    folder = entry.get("folder_path") if entry.get("dataset_path") is None else entry["dataset_path"]
    mask = known("mask_path", "").strip()
    return Source(
        folder=folder_named(folder, path, f"folder_path of {where}"),
        nested=True,
        repeats=whole_number(
            entry.get("num_repeats", 1), 1, MAX_REPEATS, f"{path.name}: num_repeats of {where}"
        ),
        role="class" if known("is_reg", False) else None,
        caption_suffixes=(suffix,),
        caption=known("default_caption", "").strip(),
        trigger=own.strip() if isinstance(own, str) else "",
        framing=framing,
        weight=float(weight),
        mask_folder=folder_named(mask, path, f"mask_path of {where}") if mask else None,
        control_folders=tuple(
            folder_named(c, path, f"control_path of {where}") for c in _control_paths(entry)
        ),
        config=path,
    )


def _control_paths(entry: Mapping[str, Any]) -> list[Any]:
    """The numbered ones go before the other, which may be a list."""
    several = [c for i in (1, 2, 3) if (c := entry.get(f"control_path_{i}"))]
    one = entry.get("control_path") or []
    return several or (one if isinstance(one, list) else [one])
