"""Bring your config: which tool wrote it, the same training here, and what was made of each name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .settings import Settings, node_of, settings
from .source_text import Source
from .tool import NONE, REASONS, Converted, Tool, convert
from .tools import TOOLS

_LONGEST = 60
_SECRET = re.compile(r"api_key|secret|password|(^|[_.])token$", re.IGNORECASE)


def read(source: Source) -> Converted:
    """Raises ConfigError for a config of no tool that is known, and for values that cannot be."""
    tool = recognised(source)
    found = convert(tool, source)
    try:
        settings(found.settings)
    except ConfigError as error:
        raise ConfigError(f"config of {tool.title}: {error}") from error
    return found


def recognised(source: Source) -> Tool:
    if source.script:
        found = next((t for t in TOOLS if t.scripts and re.search(t.scripts, source.script)), None)
        if found is None:
            raise ConfigError(
                f"config: {source.script[:60]!r} is no script whose options are known here; known are the"
                " LoRA scripts of sd-scripts, musubi-tuner and diffusers"
            )
        return found
    scores = [(bool(_signs(tool, source)) * _known(tool, source), -i, tool) for i, tool in enumerate(TOOLS)]
    best, _, tool = max(scores, key=lambda score: score[:2])
    if not best:
        some, known = ", ".join(list(source.values)[:3]), ", ".join(t.title for t in TOOLS)
        raise ConfigError(f"config: no known tool has settings such as {some[:120]}; known are {known}")
    return tool


def _signs(tool: Tool, source: Source) -> frozenset[str]:
    return tool.signs & frozenset({*source.values, *tool.rename(source.values)})


def _known(tool: Tool, source: Source) -> int:
    return sum(tool.known(name) for name in tool.rename(source.values))


def report(found: Converted) -> str:
    """Markdown: every name of the config is in it once."""
    lines = [f"## {found.tool.title}", "", f"Names: {found.tool.source}", ""]
    lines += ["### Taken over", "", "| there | value | here | node |", "|---|---|---|---|"]
    lines += _rows(found.taken, found.settings)
    if found.assumed:
        lines += ["", "### Not in the config: what that tool takes then", ""]
        lines += [
            "| there | value | here | node |",
            "|---|---|---|---|",
            *_rows(found.assumed, found.settings),
        ]
    if found.notes:
        lines += ["", "### Differs, or was rounded", "", *(f"- {note}" for note in found.notes)]
    if missing := found.left.get(NONE):
        lines += ["", "### Without counterpart: this part is not the same", "", *_items(missing)]
    others = [(reason, found.left[reason]) for reason in REASONS if reason != NONE and reason in found.left]
    if others:
        lines += ["", "### Elsewhere"]
        for reason, names in others:
            lines += ["", reason, "", *_items(names)]
    if found.unknown:
        lines += ["", "### Unknown names, which nothing was made of", "", *_items(found.unknown)]
    if found.off:
        lines += ["", "### Switched off there", "", ", ".join(f"`{name}`" for name in sorted(found.off))]
    return "\n".join(lines)


def _rows(names: Mapping[str, tuple[Any, list[str]]], values: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, (value, decided) in names.items():
        here = (
            ", ".join(f"{s.rpartition('.')[2]} {_shown(values[s])}" for s in decided) or "taken into account"
        )
        nodes = ", ".join(dict.fromkeys(node_of(s) for s in decided)) or "–"
        rows.append(f"| {name} | {_value(name, value)} | {here} | {nodes} |")
    return rows


def _items(names: Mapping[str, Any]) -> list[str]:
    return [f"- `{_shown(name)}` {_value(name, value)}" for name, value in names.items()]


def _value(name: str, value: Any) -> str:
    """Keys and tokens are nobody's business, and reports are passed around."""
    return "…" if _SECRET.search(name) else _shown(value)


def _shown(value: Any) -> str:
    """In one cell of a table."""
    if value is None:
        return "–"
    text = (
        f"{value:g}"
        if isinstance(value, float)
        else ", ".join(map(str, value))
        if isinstance(value, list | tuple)
        else str(value)
    )
    text = " ".join(text.split()).replace("|", "¦").replace("`", "'")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def usable(found: Converted) -> Settings:
    return settings(found.settings)
