"""Which node of which workflow shows a run, kept in the run's folder: a page that is opened later finds it.

A node's number alone is not enough: every workflow has a node 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainer.files import read_json, write_json
from ..trainer.host.paths import output_directory

_FILE = "canvas.json"
_MOST_PLACES = 50
_NO_ID = "00000000-0000-0000-0000-000000000000"
"""Of a workflow that was not saved or loaded yet."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node on a canvas. workflow: its id, which the page gives it; "" for a prompt that no page sent."""

    workflow: str
    node: str

    @classmethod
    def of(cls, node_id: str | None, extra_pnginfo: Any) -> Place:
        graph = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, Mapping) else None
        found = graph.get("id") if isinstance(graph, Mapping) else None
        workflow = found if isinstance(found, str) and found != _NO_ID else ""
        return cls(workflow=workflow, node=node_id or "")


def remember(place: Place, run: Path, state: str, **told: str) -> None:
    """This node shows this run from now on. told: what else a page shows, by its name."""
    if not place.workflow:
        return
    before = _read(run / _FILE) or {"places": []}
    here = [place.workflow, place.node]
    places = [seen for seen in before["places"] if seen != here][-_MOST_PLACES:]
    write_json(run / _FILE, {"places": [*places, here], "state": state, **told})


def shown_at(place: Place) -> tuple[Path, dict[str, Any]] | None:
    """The newest run that the node has shown, and what it said at the end."""
    files = (output_directory() / "in-graph-lora").glob(f"*/*/{_FILE}")
    for path in sorted(files, key=_age):
        content = _read(path)
        if content and place.workflow and [place.workflow, place.node] in content["places"]:
            return path.parent, content
    return None


def _read(path: Path) -> dict[str, Any] | None:
    content = read_json(path)
    whole = isinstance(content, dict) and isinstance(content.get("places"), list)
    return content if whole else None


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0
