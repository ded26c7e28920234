"""The dataset configuration of kohya's sd-scripts: general, datasets, subsets, in TOML.

A setting of a subset goes before that of its dataset, and that before the general one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DatasetError, shortened
from ..framing import STEPS, Framing
from ..records import Problem
from .source import MAX_REPEATS, Source, folder_named, read_config, resolution_of, whole_number

try:
    from tomllib import loads
except ImportError:  # Python 3.10
    try:
        from tomli import loads
    except ImportError:
        loads = None

_HERE = frozenset(
    {
        "image_dir", "num_repeats", "caption_extension", "class_tokens", "is_reg", "resolution", "flip_aug",
        "random_crop", "bucket_no_upscale", "bucket_reso_steps", "alpha_mask", "enable_bucket",
    }
)  # fmt: skip
_OF_TRAINING = frozenset({"batch_size", "max_bucket_reso", "min_bucket_reso"})
"""Known, and decided elsewhere without a loss: by Train LoRA, and by the area of a bucket."""


def recognises(path: Path) -> bool:
    return path.suffix.lower() == ".toml" and path.is_file()


def read(path: Path, problems: list[Problem]) -> list[Source]:
    if loads is None:
        raise DatasetError(
            f"{path.name}: TOML needs Python 3.11 or the package tomli; install it, or give the folder"
        )
    config = read_config(path, loads)
    general, found = _table(config.get("general")), []
    unused: dict[str, None] = dict.fromkeys(k for k in config if k not in ("general", "datasets"))
    for d, dataset in enumerate(_tables(config, "datasets", path.name), 1):
        for s, own in enumerate(_tables(dataset, "subsets", f"{path.name}: dataset {d}"), 1):
            settings = {**general, **{k: v for k, v in dataset.items() if k != "subsets"}, **own}
            unused.update(dict.fromkeys(k for k in settings if k not in _HERE | _OF_TRAINING))
            found.append(_source(settings, path, f"subset {s} of dataset {d}"))
    if unused:
        reason = f"these settings have no counterpart here and are not used: {shortened(sorted(unused), 12)}"
        problems.append(Problem(path=path, reason=reason, skipped=False))
    return found


def _source(settings: Mapping[str, Any], path: Path, where: str) -> Source:
    def known(name: str, default: Any) -> Any:
        value = settings.get(name, default)
        if not isinstance(value, type(default)):
            wanted = "true or false" if isinstance(default, bool) else "a text"
            raise DatasetError(f"{path.name}: {name} of {where} is {value!r}; write {wanted}")
        return value

    framing: dict[str, Any] = {}
    if "resolution" in settings:
        side = resolution_of(settings["resolution"], f"{path.name}: resolution of {where}")
        framing["resolutions"] = (side,)
    if known("flip_aug", False):
        framing["flip"] = True
    if known("random_crop", False):
        framing["crop"] = "random"
    if known("bucket_no_upscale", False):
        framing["upscaling"] = "own_size"
    if known("alpha_mask", False):
        framing["alpha_mask"] = True
    if "bucket_reso_steps" in settings:
        step = whole_number(settings["bucket_reso_steps"], 1, 512, f"{path.name}: bucket_reso_steps")
        framing["step"] = max(s for s in STEPS if math.gcd(s, step) == s or s == min(STEPS))
    try:
        Framing(**framing)
    except ConfigError as e:
        raise DatasetError(f"{path.name}: {where}: {e}") from e
    return Source(
        folder=folder_named(settings.get("image_dir"), path, f"image_dir of {where}"),
        repeats=whole_number(
            settings.get("num_repeats", 1), 1, MAX_REPEATS, f"{path.name}: num_repeats of {where}"
        ),
        role="class" if known("is_reg", False) else None,
        caption_suffixes=(_suffix(known("caption_extension", ".caption")),),
        caption=known("class_tokens", "").strip(),
        framing=framing,
        config=path,
    )


def _suffix(extension: str) -> str:
    return "." + extension.strip().lstrip(".").lower()


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _tables(config: Any, name: str, where: str) -> list[dict[str, Any]]:
    found = config.get(name) if isinstance(config, dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(t, dict) for t in found):
        raise DatasetError(f"{where} has no [[{name}]]; see kohya's page on dataset configurations")
    return found
