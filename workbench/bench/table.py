"""Results of the cases to one table, and to what was aimed at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trainer at one batch size."""

    model: str
    resolution: int
    trainer: str
    adapts: str
    batch: int
    clock: str
    """cpu: processor time of the process; wall: where a GPU does the work."""
    results: Sequence[dict[str, Any]] = ()
    """One for each round."""
    failure: str = ""

    @property
    def case(self) -> tuple[str, int, int]:
        return self.model, self.resolution, self.batch

    @property
    def seconds(self) -> float:
        return median(step[self.clock] for r in self.results for step in r["steps"])

    @property
    def wall(self) -> float:
        return median(step["wall"] for r in self.results for step in r["steps"])

    @property
    def over_floor(self) -> float:
        """Median over the steps, each beside its own two passes."""
        return median(
            step[self.clock] / floor[self.clock]
            for r in self.results
            for step, floor in zip(r["steps"], r["floors"], strict=True)
        )

    @property
    def added_memory(self) -> float:
        """MiB."""
        return max(r["added_memory"] for r in self.results) / MIB

    @property
    def alone(self) -> bool:
        """Alone in its process: only then the memory is its own."""
        return not self.trainer.endswith(", in turn")

    def over(self, other: Row) -> float:
        """Median of the ratios of the steps, when both took turns."""
        pairs = zip(self.results, other.results, strict=True)
        return median(
            a[self.clock] / b[self.clock]
            for mine, theirs in pairs
            for a, b in zip(mine["steps"], theirs["steps"], strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        figures = ("seconds", "wall", "over_floor", "added_memory") if self.results else ()
        return {**vars(self), "results": list(self.results), **{f: getattr(self, f) for f in figures}}


def markdown(rows: Sequence[Row]) -> str:
    clock = "CPU s" if all(r.clock == "cpu" for r in rows) else "s"
    head = (
        "model", "pixels", "batch", "trainer", "adapts", f"{clock} / step", "wall s / step", "× floor",
        "added MiB", "samples / step", "time / core", "memory / core",
    )  # fmt: skip
    lines = [head, ("---",) * len(head), *(_cells(row, _named(rows, row.case, "core")) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cells(row: Row, core: Row | None) -> tuple[str, ...]:
    start = (row.model, str(row.resolution), str(row.batch), row.trainer)
    if not row.results:
        return (*start, row.failure, *["–"] * 7)
    first = row.results[0]
    beside = core is not None and bool(core.results)
    return (
        *start,
        f"{row.adapts}: {first['layers']} layers, {first['parameters'] / 1e6:.1f} M",
        f"{row.seconds:.2f}",
        f"{row.wall:.2f}",
        f"{row.over_floor:.2f}",
        f"{row.added_memory:.0f}" if row.alone else "–",
        str(first["samples"]),
        f"{row.seconds / core.seconds:.2f}" if beside else "–",
        f"{row.added_memory / core.added_memory:.2f}" if beside and row.alone else "–",
    )


def _named(rows: Sequence[Row], case: tuple[str, int, int], trainer: str) -> Row | None:
    return next((r for r in rows if r.case == case and r.trainer == trainer), None)


TARGETS: dict[int, dict[str, float]] = {
    1: {"time / core": 0.65, "memory / core": 0.1, "× floor": 1.10, "time / diffusers": 1.05},
    2: {"time / core": 0.58, "× floor": 1.10, "time / diffusers": 1.05},
    4: {"time / core": 0.32, "memory / core": 0.25, "× floor": 1.25, "time / diffusers": 1.05},
}
"""By batch size: what we want to be at most, on the CPU with the full SD1.5 at 256 pixels in fp32."""


def targets(rows: Sequence[Row]) -> str:
    """Reached or not, one line each, for the batch sizes that were measured."""
    lines = []
    for batch, limits in TARGETS.items():
        case = ("sd15", 256, batch)
        ours, core, mine, theirs = (
            _named(rows, case, name) for name in ("ours", "core", "ours, in turn", "diffusers, in turn")
        )
        if ours is None or not ours.results or ours.clock != "cpu":
            continue
        figures = {"× floor": ours.over_floor}
        if core is not None and core.results:
            figures["time / core"] = ours.seconds / core.seconds
            figures["memory / core"] = ours.added_memory / core.added_memory
        if mine is not None and mine.results and theirs is not None and theirs.results:
            figures["time / diffusers"] = mine.over(theirs)
        for name, limit in limits.items():
            if name in figures:
                verdict = "reached" if round(figures[name], 2) <= limit else "NOT reached"
                lines.append(f"batch {batch}: {name} {figures[name]:.2f}, at most {limit:.2f}: {verdict}")
    return "\n".join(lines)
