"""Another trainer as a row: its names, what they are here, and what it takes where a config is silent."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ..errors import ConfigError
from ..options.optimizer import OWN_BETAS, RATE_FOUND
from .settings import DEFAULTS
from .source_text import LAUNCHER, Source

PATH = "a path or an address, which is not opened here"
FILES = "files, saving, logs and uploads: set name in Train LoRA and checkpoint_every in Train Preview"
DATA = "the pictures: Load Dataset, Image Framing and Caption Images have it"
MEMORY = "memory and speed: here Train Memory chooses what fits"
ALWAYS = "always so here"
SAMPLES = "sample pictures: Train Preview has them"
LAUNCH = "the launcher"
OTHER_NODES = "what is connected or set elsewhere: Textual Inversion, Train LoRA, Train Preview"
MODEL = "the model: it is the one on the canvas"
IDLE = "not used there for this kind of model"
NONE = "no counterpart here, so this part is not the same"
_OWN_RATE = 0.1
REASONS = (NONE, DATA, SAMPLES, FILES, MEMORY, MODEL, PATH, LAUNCH, OTHER_NODES, ALWAYS, IDLE)
"""Why a name has no setting here; those that change what is learned come first."""


@dataclass(kw_only=True)
class Reading:
    """One config while it is read."""

    given: dict[str, Any]
    """Their names → values, with the tool's defaults where the config is silent."""
    names: frozenset[str] = frozenset()
    """Those of the config."""
    script: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    taken: dict[str, list[str]] = field(default_factory=dict)
    """Their name → the settings it has decided."""
    notes: list[str] = field(default_factory=list)
    left: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Reason → their name → value."""
    now: str = ""
    """The name that is being read."""

    def set(self, setting: str, value: Any) -> None:
        """Raises ConfigError for a value of another kind."""
        default = DEFAULTS[setting]
        if isinstance(default, bool):
            value = truth(value)
        elif isinstance(default, int):
            value = self._whole(setting, value)
        elif isinstance(default, float):
            value = number(self.now, value)
        self.settings[setting] = value
        self.taken.setdefault(self.now, []).append(setting)

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def leave(self, reason: str, name: str = "") -> None:
        name = name or self.now
        self.left.setdefault(reason, {})[name] = self.given.get(name)

    def _whole(self, setting: str, value: Any) -> int:
        exact = number(self.now, value)
        if exact != round(exact):
            self.note(f"rounded: {self.now} {exact:g} is {setting} {round(exact)} here")
        return round(exact)


Converter = Callable[[Reading, Any], None]


@dataclass(frozen=True, kw_only=True)
class Tool:
    title: str
    source: str
    """Where the names and defaults are published, and as of when."""
    signs: frozenset[str]
    """Names that a config of this tool has and others lack; one is enough."""
    fields: Mapping[str, Converter]
    """Their name → what it does here."""
    left: Mapping[str, str]
    """Reason → names without a setting here, separated by spaces. * is any part; the longest that
    fits counts."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the tool takes where the config is silent, as far as it decides anything here."""
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Name → values with which it changes nothing there."""
    scripts: str = ""
    """Expression of the script's name in a command line."""
    always: Sequence[Callable[[Reading], None]] = ()
    """What follows from several names, or holds for every config of the tool; run before the fields."""
    rename: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    """Spelling of names before they are looked up."""
    families: Mapping[str, str] = field(default_factory=dict)
    """Expression found in `family_of`'s text → `Family.name`."""
    family_from: Sequence[str] = ()
    """Names whose values tell the family."""

    def reason(self, name: str) -> str | None:
        if name.startswith(LAUNCHER):
            return LAUNCH
        fits = [(len(known), reason) for reason, known in self._patterns() if fnmatchcase(name, known)]
        return max(fits)[1] if fits else None

    def _patterns(self) -> Iterator[tuple[str, str]]:
        return ((reason, known) for reason, names in self.left.items() for known in names.split())

    def is_off(self, name: str, value: Any) -> bool:
        neutral = map(str, self.neutral.get(name, ()))
        return is_off(value) or str(value).removesuffix(".0") in neutral

    def known(self, name: str) -> bool:
        return name in self.fields or self.reason(name) is not None


@dataclass(frozen=True, kw_only=True)
class Converted:
    tool: Tool
    settings: Mapping[str, Any]
    taken: Mapping[str, tuple[Any, list[str]]]
    """Their name → its value, and the settings it decided."""
    assumed: Mapping[str, tuple[Any, list[str]]]
    """The same for the tool's own defaults."""
    notes: Sequence[str]
    left: Mapping[str, Mapping[str, Any]]
    off: Sequence[str]
    """Known names that are switched off there."""
    unknown: Mapping[str, Any]
    families: tuple[str, ...]


def convert(tool: Tool, source: Source) -> Converted:
    """Every name of the config ends in one of the parts. Raises ConfigError for values that cannot be."""
    names = tool.rename(source.values)
    off, unknown = [n for n, v in names.items() if _is_empty(v) and tool.known(n)], {}
    given = {n: v for n, v in names.items() if n not in off}
    reading = Reading(given={**tool.defaults, **given}, names=frozenset(given), script=source.script)
    for rule in tool.always:
        reading.now = tool.title
        rule(reading)
    for name, value in list(reading.given.items()):
        reading.now = name
        if any(name in left for left in reading.left.values()):
            continue  # a rule has said so
        if name in tool.fields:
            if name not in tool.defaults and tool.is_off(name, value):
                off.append(name)
            else:
                tool.fields[name](reading, value)
        elif (reason := tool.reason(name)) is None:
            unknown[name] = value
        elif tool.is_off(name, value):
            off.append(name)
        else:
            reading.leave(reason)
    _stand_in(reading)
    decided = {n: (reading.given.get(n), s) for n, s in reading.taken.items()}
    silent = [n for n in names if n not in decided and n not in off and n not in unknown]
    silent = [n for n in silent if not any(n in left for left in reading.left.values())]
    return Converted(
        tool=tool,
        settings=reading.settings,
        taken={n: v for n, v in decided.items() if n in given} | {n: (names[n], []) for n in silent},
        assumed={n: v for n, v in decided.items() if n not in given},
        notes=reading.notes,
        left=reading.left,
        off=off,
        unknown=unknown,
        families=_families(tool, reading),
    )


def _stand_in(reading: Reading) -> None:
    """What an optimizer does not use. A rate for those that find their own is none for others."""
    name, rate = (reading.settings.get(f"optimizer.{n}") for n in ("name", "learning_rate"))
    if name in OWN_BETAS and reading.settings.keys() & {"optimizer.betas", "optimizer.eps"}:
        reading.note(f"{name} has betas and eps of its own here; those of the config are not used")
    if name not in RATE_FOUND and rate is not None and rate >= _OWN_RATE:
        start = 0.01 if name == "adafactor" else 1e-4
        reading.settings["optimizer.learning_rate"] = start
        used = name or "adamw"
        reading.note(
            f"the rate {rate:g} is for an optimizer that finds its own; with {used} it is {start:g} here"
        )


def _families(tool: Tool, reading: Reading) -> tuple[str, ...]:
    told = " ".join(
        [reading.script, *(f"{n}={reading.given[n]}" for n in tool.family_from if n in reading.given)]
    )
    return next(((family,) for sign, family in tool.families.items() if re.search(sign, told)), ())


# What fields do.


def to(*settings: str) -> Converter:
    def converter(reading: Reading, value: Any) -> None:
        for setting in settings:
            reading.set(setting, value)

    return converter


def scaled(setting: str, factor: float) -> Converter:
    return lambda reading, value: reading.set(setting, number(reading.now, value) * factor)


def choice(setting: str, choices: Mapping[str, Any]) -> Converter:
    """Their word → ours, in any case; what is not there is left, with the reason."""

    def converter(reading: Reading, value: Any) -> None:
        word = str(value).strip().lower()
        if word in choices:
            reading.set(setting, choices[word])
        else:
            reading.leave(NONE)

    return converter


def together(_reading: Reading, _value: Any) -> None:
    """Its part is done by a rule of the tool's `always`."""


def when_on(does: Converter) -> Converter:
    return lambda reading, value: None if is_off(value) else does(reading, value)


def number(name: str, value: Any) -> float:
    """Raises ConfigError."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise ConfigError(f"config: {name} is {str(value)[:80]!r}, which is no number; correct it")
    return found


def truth(value: Any) -> bool:
    return not is_off(value) and str(value).lower() != "no"


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def is_off(value: Any) -> bool:
    """Whether a value says that something is not used."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "false", "none", "null", "0", "0.0", "off")
    return value is None or value is False or value in (0, [], {})
