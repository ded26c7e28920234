"""What was found, in words and figures: Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .choice import Bounds, Choice, exceeded
from .figures import FIGURES, Figure, Measured, change
from .known import TRAINED_ON
from .measure import Copy, Findings
from .shots import KINDS, Candidate, Shot

FORMAT = 1
FEW_PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class Report:
    shots: Sequence[Shot]
    columns: Sequence[tuple[Candidate, Findings]]
    """The base first."""
    choice: Choice
    bounds: Bounds
    judge: str
    """Name and digest; empty without one."""
    settings: Mapping[str, Any]
    """All that decides the pictures, versions, hashes of models and references."""
    notes: Sequence[str] = ()
    """What could not be measured, and why."""
    all_figures: bool = False
    unseen: bool | None = None
    """Whether the references were not trained on; None without references."""

    @property
    def figures(self) -> list[Figure]:
        """Those that were measured and may be shown, among them the one that decided."""
        there = {key for _, findings in self.columns for key in findings.figures}
        decided = self.choice.figure
        return [f for f in FIGURES if f.key in there and (f.shown or self.all_figures or f.key == decided)]

    def warnings(self) -> list[str]:
        """What speaks against the LoRA, and against the figures themselves."""
        found = []
        if self.unseen is False:
            found.append(TRAINED_ON)
        for candidate, findings in self.columns:
            if candidate.is_base:
                continue
            found += [f"{candidate.label}: {text}" for text in self._copied(findings.copies)]
            found += [f"{candidate.label}: {text}" for text in exceeded(findings.figures, self.bounds)]
            found += [f"{candidate.label}: {text}" for text in self._against_base(findings.figures)]
        counts = [(words, sum(shot.kind == kind for shot in self.shots)) for kind, words in KINDS.items()]
        few = [f"{n} {words}" for words, n in counts if 0 < n < FEW_PICTURES]
        if few:
            found.append(f"so few pictures say little: {', '.join(few)}; the intervals are wide")
        return found

    def _copied(self, copies: Sequence[Copy]) -> list[str]:
        total = sum(shot.kind == "trigger" for shot in self.shots)
        names = dict.fromkeys(copy.name for copy in copies)
        by_name = {name: len({c.shot for c in copies if c.name == name}) for name in names}
        return [
            f"{n} of {total} samples {'is a near copy' if n == 1 else 'are near copies'} of {name}"
            for name, n in by_name.items()
        ]

    def _against_base(self, own: Mapping[str, Measured]) -> list[str]:
        base = self.columns[0][1].figures
        found = []
        if (
            "subject" in own
            and "subject" in base
            and not _clearly(base["subject"], own["subject"], better=True)
        ):
            found.append("the subject is no nearer than without the LoRA; train longer, or check the trigger")
        if "leak" in own and "leak" in base and _clearly(base["leak"], own["leak"], better=False):
            found.append(
                f"prompts of the class without the trigger are drawn nearer to the subject"
                f" ({own['leak'].value:.2f}, before {base['leak'].value:.2f}); train with class pictures"
            )
        return found

    def markdown(self) -> str:
        lines = ["## Evidence", ""]
        chosen = self.choice.column
        if chosen is not None:
            lines += [f"**Best: {self.columns[chosen][0].label}** ({self.choice.reason}).", ""]
        else:
            lines += [f"{self.choice.reason}.", ""]
        lines += [f"- ⚠ {text}" for text in self.warnings()]
        lines += [f"- {text}" for text in self.notes]
        lines += ["", *table(self)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "settings": dict(self.settings),
            "judge": self.judge,
            "references_unseen": self.unseen,
            "bounds": asdict(self.bounds),
            "shots": [asdict(shot) for shot in self.shots],
            "columns": [
                {
                    **asdict(candidate),
                    "figures": {key: m.to_dict() for key, m in findings.figures.items()},
                    "copies": [asdict(copy) for copy in findings.copies],
                }
                for candidate, findings in self.columns
            ],
            "best": {"column": self.choice.column, "reason": self.choice.reason},
            "warnings": self.warnings(),
            "notes": list(self.notes),
        }


def _clearly(base: Measured, own: Measured, *, better: bool) -> bool:
    """Whether the difference at equal seeds has an interval on one side of zero."""
    _, interval = change(base, own, paired=len(base.values) == len(own.values))
    if interval is None:
        return False
    up = better == (own.figure.good == "higher")
    return interval[0] > 0 if up else interval[1] < 0


def table(report: Report) -> list[str]:
    """A row a figure, a column a candidate; value and 95 % interval."""
    labels = [candidate.label.replace("|", "/") for candidate, _ in report.columns]
    lines = [
        "| figure | in the literature | good | pictures | " + " | ".join(labels) + " |",
        "|---|---|---|---|" + "---|" * len(labels),
    ]
    for figure in report.figures:
        own = [findings.figures.get(figure.key) for _, findings in report.columns]
        cells = [cell(m) for m in own]
        good = f"{figure.good}, {figure.range}"
        head = [figure.title, figure.literature, good, count(report, figure)]
        lines.append("| " + " | ".join([*head, *cells]) + " |")
    return lines


def count(report: Report, figure: Figure) -> str:
    """Over how many pictures, and of which prompts, like "12 trigger"."""
    own = [findings.figures.get(figure.key) for _, findings in report.columns]
    return f"{max(m.count for m in own if m is not None)} {figure.kind}"


def cell(measured: Measured | None) -> str:
    if measured is None:
        return "–"
    low_high = measured.interval
    return f"{measured.value:.3f}" + (f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else "")
