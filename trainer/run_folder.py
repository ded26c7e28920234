"""The folder of one run: what was asked for, what happened, and what came out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .events import Event, Validated
from .files import clear_unfinished, not_written, read_json, write_image, write_json, write_whole
from .loss_curve import loss_curve

MATHEMATICS = 2
"""Counts up when the same settings would give another LoRA, so that old runs are not taken for new ones."""


def run_key(config: TrainConfig, models: Sequence[str]) -> str:
    """Two runs with one key are the same run, however long: sha256 of all that decides the weights.

    models: fingerprints of model, text encoder and VAE. Left out are the name, the number of steps, what
    trades time for memory, previews and measurements. What is held out counts by the dataset's digest.
    """
    matters = config.to_dict()
    for name in ("name", "steps", "epochs", "save", "preview", "validation"):
        matters.pop(name, None)
    matters["memory"] = {"precision": config.memory.precision}
    text = json.dumps([MATHEMATICS, matters, list(models)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run that reached its end was asked for and gave."""

    lora: Path
    source: str
    """The checkpoint's file that `lora` is a copy of."""
    steps: int
    """Reached; less than `asked` when the held-out loss ended the run."""
    asked: int
    keep_best: bool
    patience: int

    @classmethod
    def of(cls, config: TrainConfig, asked: int, *, reached: int, lora: Path, source: Path) -> Finished:
        wishes = config.validation
        return cls(
            lora=lora,
            source=source.name,
            steps=reached,
            asked=asked,
            keep_best=wishes.keep_best,
            patience=wishes.patience,
        )

    def answers(self, config: TrainConfig, asked: int) -> bool:
        """Whether a run with this config would end in the same result."""
        wishes = config.validation
        return (self.asked, self.keep_best, self.patience) == (asked, wishes.keep_best, wishes.patience)


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    if isinstance(value, tuple):
        return [_jsonable(v) for v in value]
    return str(value) if isinstance(value, Path) else value


class RunFolder:
    """`<runs>/<run>/` with run.json, config.json, events.jsonl, loss.png and checkpoints/."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, runs: Path, config: TrainConfig, key: str) -> RunFolder:
        """Make a folder of its own below `runs`, named by date and time."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        n = 1
        while True:
            path = runs / (stamp if n == 1 else f"{stamp}-{n}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                n += 1
            except OSError as error:
                raise not_written(path, error) from error
        folder = cls(path)
        folder.write_config(config)
        write_json(path / "run.json", {"key": key})
        return folder

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def loras(self) -> list[Path]:
        """The LoRA files of the checkpoints, oldest step first."""
        found = self.checkpoints.glob("step_*.safetensors")
        return sorted(path for path in found if not path.name.endswith(".state.safetensors"))

    @property
    def key(self) -> str:
        return (read_json(self.path / "run.json") or {}).get("key", "")

    @property
    def finished(self) -> Finished | None:
        """None for a run that has not reached its end."""
        result = (read_json(self.path / "run.json") or {}).get("result")
        try:
            return Finished(**{**result, "lora": Path(result["lora"])}) if result else None
        except (TypeError, KeyError):  # written by another version
            return None

    def finish(self, finished: Finished) -> None:
        result = {**asdict(finished), "lora": str(finished.lora)}
        write_json(self.path / "run.json", {"key": self.key, "result": result})

    def write_config(self, config: TrainConfig) -> None:
        write_json(self.path / "config.json", config.to_dict())

    def log(self, event: Event) -> None:
        """Append one line to events.jsonl."""
        line = {"event": type(event).__name__}
        line |= {k: _jsonable(v) for k, v in asdict(event).items()}
        try:
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as error:
            raise not_written(self.path / "events.jsonl", error) from error

    def clear_unfinished(self) -> None:
        clear_unfinished(self.path)

    def losses(self) -> list[float]:
        """The loss of each step in events.jsonl; NaN where it was no number."""
        return [math.nan if e["loss"] is None else e["loss"] for e in self.events("StepDone")]

    def validations(self) -> list[Validated]:
        return [
            Validated(step=e["step"], loss=math.nan if e["loss"] is None else e["loss"], best=e["best"])
            for e in self.events("Validated")
        ]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one class in events.jsonl, by the name of its dataclass."""
        return [e for e in self._events() if e.get("event") == kind]

    def _events(self) -> list[dict[str, Any]]:
        try:
            lines = (self.path / "events.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:  # the line that was being written when the process died
                continue
        return events

    def rewind(self, step: int) -> None:
        """Forget events after `step`, which will happen again."""
        kept = [e for e in self._events() if e.get("step", 0) <= step]
        write_whole(self.path / "events.jsonl", "".join(json.dumps(e) + "\n" for e in kept).encode())

    @property
    def loss_curve(self) -> Path:
        return self.path / "loss.png"

    def write_loss_curve(self, losses: Sequence[float]) -> None:
        write_image(self.loss_curve, loss_curve(losses, len(losses)))


def previous_runs(runs: Path) -> list[RunFolder]:
    """The run folders below `runs`, newest first."""
    try:
        found = [p for p in runs.iterdir() if (p / "run.json").exists()]
    except OSError:
        return []
    return [RunFolder(p) for p in sorted(found, key=lambda p: p.stat().st_mtime_ns, reverse=True)]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """ "adapter.rank 16 → 8" for each setting that differs."""
    out = []
    for name in sorted({*before, *now}):
        a, b = before.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{prefix}{name}.")
        elif a != b and (a is not None or b is not None):
            short = [v[:8] if name == "digest" and isinstance(v, str) else v for v in (a, b)]
            out.append(f"{prefix}{name} {short[0]} → {short[1]}")
    return out
