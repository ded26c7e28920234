"""What is said of a value that cannot be used."""

from __future__ import annotations

import math
import re
from typing import Any

from ..errors import ConfigError

# Windows' reserved characters too: a run's folder may be synced or shared.
_BAD_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]')


def demand(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def check_range(settings: Any, low: float, high: float, *names: str, hint: str = "") -> None:
    """high: math.inf for numbers without a bound, which still have to be finite."""
    bounds = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:.12g}"
    for name in names:
        value = getattr(settings, name)
        ok = low <= value <= high and math.isfinite(value)
        demand(ok, f"{name} is {value}; choose {bounds}{hint and f' ({hint})'}")


def check_positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        demand(0 < value < math.inf, f"{name} is {value}; choose a number above 0")


def check_choice(field_name: str, value: str, choices: tuple[str, ...]) -> None:
    demand(value in choices, f"{field_name} is {value!r}; choose one of {', '.join(choices)}")


RESERVED_NAMES = ("cache", "captions", "class-images", "evidence", "graph-images", "jobs", "unpacked")
"""Folders of ours beside those of the runs."""


def check_name(name: str) -> str:
    """Return `name` stripped; what cannot be the name of a file or of a run's folder raises ConfigError."""
    name = name.strip()
    bad = not name or _BAD_NAME.search(name) or name.startswith(".") or name.endswith(".") or len(name) > 100
    if bad:
        raise ConfigError(
            f"name {name!r} cannot be a file name; use up to 100 letters, digits, '-', '_' or spaces,"
            " without slashes, colons or a leading dot"
        )
    if name.casefold() in RESERVED_NAMES:
        raise ConfigError(f"name {name!r} is that of a folder beside the runs; choose another, as my-{name}")
    return name
