"""events.jsonl: what happened in a run, one line an event."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..events import Event, Validated
from ..files import not_written, write_whole


class EventLog:
    """Lines that are no events of ours, or not whole, are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: Event) -> None:
        """Append one line."""
        line = {"event": type(event).__name__}
        line |= {k: _jsonable(v) for k, v in asdict(event).items()}
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as error:
            raise not_written(self.path, error) from error

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one class, by the name of its dataclass."""
        return [e for e in self._read()[0] if e["event"] == kind]

    def losses(self, steps: int) -> list[float]:
        """The loss of each of the first `steps` steps; NaN where it was no number or its line is lost."""
        found = {e["step"]: _number(e["loss"]) for e in self.events("StepDone")}
        return [found.get(step, math.nan) for step in range(1, steps + 1)]

    def validations(self) -> list[Validated]:
        found = self.events("Validated")
        return [Validated(step=e["step"], loss=_number(e["loss"]), best=e["best"]) for e in found]

    def judged(self, seen_by: str) -> dict[int, dict[str, float]]:
        """Step → key of a figure → its value, as it was last said. seen_by: of `record.seen_by`."""
        return {e["step"]: e["figures"] for e in self.events("Judged") if e.get("seen_by") == seen_by}

    def rewind(self, step: int) -> int:
        """Forget events after `step`, which will happen again. Returns how many damaged lines went too."""
        events, damaged = self._read()
        kept = [e for e in events if e.get("step", 0) <= step]
        write_whole(self.path, "".join(json.dumps(e) + "\n" for e in kept).encode())
        return damaged

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """(events, number of damaged lines)"""
        try:
            text = self.path.read_bytes().decode("utf-8", "replace")
        except OSError:
            return [], 0
        # A last line without an end was being written when the process died.
        lines = text[: text.rfind("\n") + 1].splitlines()
        events = list(_parsed(lines))
        return events, sum(bool(line.strip()) for line in lines) - len(events)


def _parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and _is_ours(event):
            yield event


def _is_ours(event: dict[str, Any]) -> bool:
    """Checks what is read again: step, loss, best and figures."""
    kind = event.get("event")
    if not isinstance(kind, str) or ("step" in event and type(event["step"]) is not int):
        return False
    if kind in ("StepDone", "Validated") and not ("step" in event and _is_loss(event.get("loss", ""))):
        return False
    if kind == "Judged":
        figures = event.get("figures")
        return "step" in event and isinstance(figures, dict) and all(map(_is_number, figures.values()))
    return kind != "Validated" or isinstance(event.get("best"), bool)


def _is_loss(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(loss: float | None) -> float:
    return math.nan if loss is None else float(loss)


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    if isinstance(value, tuple):
        return [_jsonable(v) for v in value]
    return str(value) if isinstance(value, Path) else value
