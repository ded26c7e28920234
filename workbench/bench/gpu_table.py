"""The table of what `dev.py gpu` measured."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

HEAD = (
    "model", "pixels", "batch", "trainer", "cap GB", "settings", "s / step", "share of the matrix rate",
    "peak GB", "reserved GB", "time / ours",
)  # fmt: skip


def table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """time / ours: beside ours without a cap at the same size, whose weights are all on the card."""
    cases = [e for name, e in entries.items() if name.startswith("bench ") and "case" in e]
    lines = [HEAD, ("---",) * len(HEAD)]
    lines += [_cells(entry, _ours(cases, entry["case"])) for entry in cases]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(entry: Mapping[str, Any], ours: Mapping[str, Any] | None) -> tuple[str, ...]:
    case = entry["case"]
    settings = ", ".join(f"{k} {v}" for k, v in case["options"].get("memory", case["options"]).items())
    if plan := entry.get("plan"):
        settings += f": {plan['levers']} ({plan['seconds']:.3f} s, {plan['device'] / 2**30:.1f} GB predicted)"
    start = (
        *(case["model"], str(case["resolution"]), str(case["batch"]), case["trainer"]),
        *(f"{case['cap']:g}" if case["cap"] else "–", settings or "its defaults"),
    )
    if "steps" not in entry:
        return (*start, entry.get("failure", entry["outcome"]), *["–"] * 4)
    seconds = _seconds(entry)
    share = entry["flops"] / (seconds * entry["matrix_rate"])
    beside = f"{seconds / _seconds(ours):.2f}" if ours is not None else "–"
    peak, reserved = (f"{entry[f'{name}_memory'] / 2**30:.1f}" for name in ("peak", "reserved"))
    return (*start, f"{seconds:.3f}", f"{share:.2f}", peak, reserved, beside)


def _ours(cases: list[Mapping[str, Any]], like: Mapping[str, Any]) -> Mapping[str, Any] | None:
    same = ("model", "resolution", "batch")
    for entry in cases:
        case = entry["case"]
        resident = case["trainer"] == "ours" and not case["cap"] and "steps" in entry
        if resident and all(case[key] == like[key] for key in same):
            return entry
    return None


def _seconds(entry: Mapping[str, Any]) -> float:
    return median(step["wall"] for step in entry["steps"])
