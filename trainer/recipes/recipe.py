"""A recipe: one JSON file in the pack's folder `recipes`. docs/recipes.md describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..families import FAMILIES
from .settings import Settings, node_of, settings, typed

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
LANGUAGES = ("en", "zh")
MAX_BYTES = 100_000

Text = Mapping[str, str]
"""Language → text, for each of LANGUAGES."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    value: Any
    why: Text
    source: str
    """Where the number is published; that of the recipe where it has none of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    name: str
    title: Text
    about: Text
    source: str
    families: tuple[str, ...]
    """`Family.name` of the models it is for; () is any."""
    values: Mapping[str, Value]
    """By the names of `settings.DEFAULTS`."""
    notes: tuple[Text, ...]
    """What the recipe's source does otherwise, or what is left to do."""

    @property
    def settings(self) -> Settings:
        return settings({name: value.value for name, value in self.values.items()})

    def report(self, language: str) -> str:
        """Markdown: what is set, why, and where that comes from."""
        rows = [
            f"| {name.rpartition('.')[2]} | {_shown(v.value)} | {node_of(name)} | {v.why[language]} |"
            f" {v.source} |"
            for name, v in self.values.items()
        ]
        lines = [
            f"## {self.title[language]}",
            "",
            self.about[language],
            "",
            "| setting | value | node | why | source |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *(f"- {note[language]}" for note in self.notes),
        ]
        return "\n".join(lines)


def names(folder: Path = FOLDER) -> list[str]:
    """Of the recipes there are."""
    return sorted(path.stem for path in folder.glob("*.json"))


def load(name: str, folder: Path = FOLDER) -> Recipe:
    """Raises ConfigError that names the file and what is wrong in it."""
    if name not in names(folder):
        raise ConfigError(f"there is no recipe {name[:80]!r}; choose one of {', '.join(names(folder))}")
    path = folder / f"{name}.json"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"has more than {MAX_BYTES} bytes; shorten it")
        return _recipe(name, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:  # ConfigError is a ValueError
        raise ConfigError(f"the recipe {path.name} cannot be used: {error}") from error


def _recipe(name: str, data: Any) -> Recipe:
    data = _table(data, "it", {"title", "about", "source", "families", "settings"}, {"notes"})
    families, notes = data["families"], data.get("notes", [])
    known = {f.name for f in FAMILIES}
    if not isinstance(families, list) or any(f not in known for f in families):
        raise ConfigError(f"families must be a list of {', '.join(sorted(known))}")
    if not isinstance(notes, list) or not isinstance(data["settings"], dict):
        raise ConfigError("settings must be a table and notes a list; correct them")
    source = _line(data["source"], "source")
    values = {}
    for setting, given in data["settings"].items():
        one = _table(given, setting, {"value", *LANGUAGES}, {"source"})
        values[setting] = Value(
            value=typed(setting, one["value"]),
            why=_text({k: one[k] for k in LANGUAGES}, setting),
            source=_line(one.get("source", source), setting),
        )
    recipe = Recipe(
        name=name,
        title=_text(data["title"], "title"),
        about=_text(data["about"], "about"),
        source=source,
        families=tuple(families),
        values=values,
        notes=tuple(_text(note, "notes") for note in notes),
    )
    _ = recipe.settings  # raises what is out of range
    return recipe


def _table(value: Any, where: str, wanted: set[str], more: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or not wanted <= value.keys() <= wanted | more:
        raise ConfigError(f"{where} must have {', '.join(sorted(wanted))} and nothing else")
    return value


def _text(value: Any, where: str) -> Text:
    return {k: _line(v, where) for k, v in _table(value, where, set(LANGUAGES), set()).items()}


def _line(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value or "|" in value:
        raise ConfigError(f"{where} must be one line of text without |")
    return value


def _shown(value: Any) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else f"{value}"
    )
