"""The step of a run that Evaluate LoRA found best, from the reports in the run's folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..files import read_json
from .folder import RunFolder


def best_evaluated(folder: RunFolder, steps: Collection[int]) -> int | None:
    """By the newest report that names one of the steps; None without such a report."""
    found = (_best(report, folder.path.parent.name) for report in reports(folder))
    return next((step for step in found if step in steps), None)


def reports(folder: RunFolder) -> list[Path]:
    """`report.json` of each evaluation, the newest first."""
    dated = []
    for path in (folder.path / "evidence").glob("*/report.json"):
        try:
            dated.append((path.stat().st_mtime_ns, path))
        except OSError:
            continue
    return [path for _, path in sorted(dated, reverse=True)]


def _best(report: Path, name: str) -> Any:
    """None for a report of another kind, or whose best is no checkpoint of this run."""
    content: Any = read_json(report)
    try:
        column = content["columns"][content["best"]["column"]]
        return column["step"] if column["name"] == name and type(column["step"]) is int else None
    except (TypeError, LookupError):
        return None
