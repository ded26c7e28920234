"""Which step and which strength: the highest fidelity among those with drift and copies within bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .figures import BY_KEY, Measured
from .shots import Candidate

FIDELITY = ("subject", "loss")
"""The first of these that was measured decides."""
DRIFT = "drift"
COPIES = ("copies", "pixel_copies")

Column = tuple[Candidate, Mapping[str, Measured]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    drift: float = 0.5
    """1 is as far as one picture of the base is from another."""
    copies: float = 0.25
    """Share of near copies."""

    def __post_init__(self) -> None:
        for name in ("drift", "copies"):
            value = getattr(self, name)
            if not 0 <= value <= 10:
                raise ConfigError(f"max_{name} is {value}; choose 0 to 10")


@dataclass(frozen=True, kw_only=True)
class Choice:
    column: int | None
    """Index; None where nothing can be said."""
    reason: str
    figure: str = ""
    """Key of the figure that decided."""


def exceeded(measured: Mapping[str, Measured], bounds: Bounds) -> list[str]:
    """What of a candidate is out of bounds, in words."""
    limits = [(DRIFT, bounds.drift), *((key, bounds.copies) for key in COPIES)]
    return [
        f"{BY_KEY[key].title} is {measured[key].value:.2f}, above {limit:g}"
        for key, limit in limits
        if key in measured and measured[key].value > limit
    ]


def choose(columns: Sequence[Column], bounds: Bounds) -> Choice:
    """Among the candidates with a LoRA. The lowest drift when none is within bounds."""
    loras = [i for i, (candidate, _) in enumerate(columns) if not candidate.is_base]
    key = next((k for k in FIDELITY if loras and all(k in columns[i][1] for i in loras)), None)
    if not loras or key is None:
        return Choice(
            column=loras[-1] if loras else None,
            reason="no figure tells how near the pictures are to the subject: connect a judge and references,"
            " or a dataset with held-out pictures; the last LoRA was taken",
        )
    figure = BY_KEY[key]
    within = [i for i in loras if not exceeded(columns[i][1], bounds)]
    if not within:
        least = min(loras, key=lambda i: _drift(columns[i][1]))
        return Choice(column=least, reason="none stays within bounds; the one that drifts least was taken")
    sign = 1 if figure.good == "higher" else -1
    best = max(within, key=lambda i: (sign * columns[i][1][key].value, -i))
    out = len(loras) - len(within)
    of = f" of the {len(within)} within bounds ({out} are not)" if out else ""
    best_word = "highest" if sign == 1 else "lowest"
    reason = f"{best_word} {figure.title}{of}: {columns[best][1][key].value:.3f}"
    return Choice(column=best, reason=reason, figure=key)


def _drift(measured: Mapping[str, Measured]) -> float:
    return measured[DRIFT].value if DRIFT in measured else 0.0
