"""The tables of docs/evidence.md, written from trial.json and never by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import ROOT

PAGE = ROOT / "docs" / "evidence.md"
TRIALS = ("drawn", "learned", "spoiled")
FIGURES = (
    "figure",
    "in the literature",
    "drawn sets",
    "LoRAs",
    "spoiled LoRAs",
    "harmless / spoiled",
    "shown",
)
FAILED = (
    "LoRA",
    "is the subject",
    "subject fidelity",
    "class became the subject",
    "leak",
    "unrelated wrong",
    "drift",
    "near copies, features / pixels",
    "held-out loss",
)


def figures_table(found: Mapping[str, Any]) -> str:
    """For each figure the rank correlation with its truth in each trial that was run."""
    from in_graph_lora.trainer.evidence.figures import FIGURES as ROWS

    def cell(trial: str, key: str) -> str:
        own = found.get(trial, {})
        own = own.get(key) if trial == "drawn" else own.get("ranked", {}).get(key)
        if own is None or own["rho"] is None:
            return "–"
        return f"{own['rho']:.2f} ({own['interval'][0]:.2f} to {own['interval'][1]:.2f})"

    rows = []
    for figure in ROWS:
        trials = [cell(name, figure.key) for name in TRIALS]
        own = found["harmless"].get(figure.key)
        harm = f"{own['harmless']:.2f} / {own['spoiled']:.2f}" if own else "–"
        if {*trials, harm} == {"–"}:
            trials[0] = "not tried"
        shown = "yes" if figure.shown else "on request"
        rows.append([figure.title, figure.literature, *trials, harm, shown])
    return _table(FIGURES, rows)


def failures_table(found: Mapping[str, Any]) -> str:
    """The LoRAs that were made to fail: what the classifier sees, and what the figures say."""
    rows = []
    for row in found["spoiled"]["rows"].values():
        truth, own = row["truth"], row["figures"]
        rows.append(
            [
                row["title"],
                _share(truth["subject"]),
                _signed(own["subject"]),
                _share(truth["leak"]),
                _signed(own["leak"]),
                _share(truth["drift"]),
                f"{own['drift']:.2f}",
                f"{_share(own['copies'])} / {_share(own['pixel_copies'])}",
                f"{own['loss']:.2f}",
            ]
        )
    return _table(FAILED, rows)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def written(page: str, found: Mapping[str, Any]) -> str:
    """The page with its two tables made anew."""
    for table in (figures_table(found), failures_table(found)):
        head = table.splitlines()[0]
        before, _, rest = page.partition(head)
        after = rest[rest.index("\n\n") :]
        page = before + table + after
    return page


def write(found: Mapping[str, Any]) -> None:
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
