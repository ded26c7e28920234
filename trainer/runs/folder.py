"""The folder of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..files import not_written, read_json, write_image, write_json, write_text
from ..memory.report import Plan
from ..pictures.loss_curve import loss_curve
from .log import EventLog
from .record import Finished, Record


class RunFolder:
    """`<runs>/<run>/`; see the room's docstring for what lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = EventLog(path / "events.jsonl")

    @classmethod
    def create(cls, runs: Path, config: TrainConfig, record: Record) -> RunFolder:
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
        record.write(folder._record)
        return folder

    @property
    def _record(self) -> Path:
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def loss_curve(self) -> Path:
        return self.path / "loss.png"

    @property
    def overview(self) -> Path | None:
        """The picture of all previews, if there are any."""
        path = self.path / "previews.png"
        return path if path.is_file() else None

    def record(self) -> Record | None:
        """None when run.json is not whole, or not ours."""
        return Record.read(self._record)

    def finish(self, finished: Finished) -> None:
        record = self.record() or Record(key="")
        replace(record, finished=finished).write(self._record)

    def config(self) -> dict[str, Any]:
        """The settings as they were written; empty when the file is not whole."""
        content = read_json(self.path / "config.json")
        return content if isinstance(content, dict) else {}

    def write_config(self, config: TrainConfig) -> None:
        write_json(self.path / "config.json", config.to_dict())

    def write_plan(self, plan: Plan) -> None:
        write_json(self.path / "plan.json", plan.to_dict())
        write_text(self.path / "plan.md", f"{plan.text}\n\n{plan.table}\n")

    def write_loss_curve(self, losses: Sequence[float]) -> None:
        write_image(self.loss_curve, loss_curve(losses, len(losses)))


def previous_runs(runs: Path) -> list[RunFolder]:
    """The run folders below `runs`, newest first; also those whose run.json is not whole."""
    found = []
    try:
        for path in runs.iterdir():
            if any((path / name).exists() for name in ("run.json", "config.json", "events.jsonl")):
                found.append((path.stat().st_mtime_ns, path))
    except OSError:
        return []
    return [RunFolder(path) for _, path in sorted(found, reverse=True)]
