"""Two reports against each other: is a figure worse, by more than its pictures' scatter?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import read_json
from .figures import BY_KEY, Figure, Measured, change
from .report import FORMAT


@dataclass(frozen=True, kw_only=True)
class Difference:
    column: str
    figure: Figure
    before: float
    after: float
    change: float
    interval: tuple[float, float] | None
    """95 % of the change; None where nothing can be said."""

    @property
    def worse(self) -> bool:
        return self.interval is not None and all(map(self.figure.worse, self.interval))

    @property
    def better(self) -> bool:
        return self.interval is not None and all(self.figure.worse(-edge) for edge in self.interval)


def read_report(path: Path) -> Mapping[str, Any]:
    """Raises ConfigError for anything but a report."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(
            f"{path.name} is no report of Evaluate LoRA (format {FORMAT}); choose a report.json"
        )
    return content


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Of each candidate with the same label and each figure that both have.

    The same prompts and seeds are compared in pairs. Raises ConfigError when the judges differ, whose figures
    have nothing to do with each other, or nothing is in both.
    """
    found = []
    try:
        if before["judge"] != after["judge"]:
            names = [f"{report['judge'] or 'none'}" for report in (before, after)]
            raise ConfigError(f"the judges differ ({names[0]}; {names[1]}); evaluate both with one judge")
        paired = before["shots"] == after["shots"]
        old = {column["label"]: column["figures"] for column in before["columns"]}
        for column in after["columns"]:
            for key, content in column["figures"].items():
                known = old.get(column["label"], {}).get(key)
                if known is not None and key in BY_KEY:
                    found.append(_difference(column["label"], key, known, content, paired))
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"a report is not whole ({error!r}); evaluate again") from error
    if not found:
        raise ConfigError(
            "the two reports have no candidate and figure in common; compare reports of one graph"
        )
    return found


def _difference(label: str, key: str, before: Any, after: Any, paired: bool) -> Difference:
    old, new = Measured.from_dict(key, before), Measured.from_dict(key, after)
    moved, interval = change(old, new, paired and len(old.values) == len(new.values))
    return Difference(
        column=label, figure=BY_KEY[key], before=old.value, after=new.value, change=moved, interval=interval
    )


def summary(differences: Sequence[Difference]) -> str:
    """In a sentence: what is worse and what is better by more than its interval."""

    def named(chosen: Sequence[Difference]) -> str:
        return ", ".join(f"{d.figure.title} ({d.column})" for d in chosen)

    worse, better = [d for d in differences if d.worse], [d for d in differences if d.better]
    told = [f"**Worse**: {named(worse)}." if worse else "Nothing is worse by more than its interval."]
    if better:
        told.append(f"Better: {named(better)}.")
    return " ".join(told)


def markdown(differences: Sequence[Difference]) -> str:
    lines = ["| candidate | figure | before | after | change (95 %) | |", "|---|---|---|---|---|---|"]
    for d in differences:
        edges = f" ({d.interval[0]:+.3f} to {d.interval[1]:+.3f})" if d.interval else ""
        verdict = "worse" if d.worse else "better" if d.better else ""
        name = f"{d.figure.title} ({d.figure.literature})"
        lines.append(
            f"| {d.column} | {name} | {d.before:.3f} | {d.after:.3f} | {d.change:+.3f}{edges} | {verdict} |"
        )
    return "\n".join(lines)
