"""All runs of an output folder: found, described for the page, deleted.

A run is named by its id, `<name>/<run>`. Ids come from listing the folder; what a client sends is only looked
up among them. Links are left out: nothing is read or deleted through them.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import StorageError
from ..space import size
from . import steps
from .checkpoints import LORA, loras, step_reached
from .evaluated import best_evaluated
from .folder import RunFolder
from .history import curve, pictures, prompts
from .in_use import FILE as IN_USE
from .in_use import is_in_use

CURVE_POINTS = 200


class Runs:
    """The runs below `root`, `<root>/<name>/<run>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ids(self) -> list[str]:
        """Of every run, also of one without a checkpoint; the newest first."""
        found = []
        for name in _folders(self.root):
            for run in _folders(Path(name.path)):
                try:
                    changed = os.stat(os.path.join(run.path, "run.json")).st_mtime_ns
                except OSError:
                    continue
                found.append((changed, f"{name.name}/{run.name}"))
        return [run for _, run in sorted(found, reverse=True)]

    def names(self) -> list[str]:
        """Ids of the runs that have a LoRA."""
        return [run for run in self.ids() if _has_lora(self.root / run / "checkpoints")]

    def folder(self, run: str) -> RunFolder:
        """Raises StorageError for anything but an id that is there now."""
        known = {there: self.root / there for there in self.ids()}
        if run not in known:
            raise StorageError(f"there is no run {run[:80]!r}; refresh the list of runs")
        return RunFolder(known[run])

    def page(self, offset: int, limit: int, *, with_lora: bool = False) -> dict[str, Any]:
        """{runs: [summary], total, offset} of `limit` runs after the newest `offset`. No log is read."""
        ids = self.names() if with_lora else self.ids()
        shown = ids[offset : offset + limit]
        return {"runs": [self.summary(run) for run in shown], "total": len(ids), "offset": offset}

    def summary(self, run: str) -> dict[str, Any]:
        """What the list shows of a run: from run.json, config.json and the names of files."""
        folder = RunFolder(self.root / run)
        record, config = folder.record(), folder.config()
        done = record.finished if record else None
        reached = max([step_reached(folder.checkpoints), *loras(folder.checkpoints)])
        state = "finished" if done else "stopped" if reached else "empty"
        shown = _pictures(folder)
        return {
            "id": run,
            "state": "training" if is_in_use(folder.path) else state,
            "step": done.steps if done else reached,
            "steps": done.asked if done else _plain_steps(config),
            "lora": done.lora if done else None,
            "picture": shown[max(shown)][0] if shown else None,
            "bytes": size(folder.path),
        }

    def detail(self, run: str) -> dict[str, Any]:
        """summary and {config, prompts, curve, checkpoints, best, evaluated}.

        curve: {loss, held_out}, each a list of [step, loss or None]; loss has CURVE_POINTS points at most,
        means of neighbours. checkpoints: [{step, held_out, pictures}] of each step with a LoRA. best: the
        step that Evaluate LoRA found best, or else the judge of the previews; None where none decided.
        evaluated: whether it was Evaluate LoRA.
        """
        from .judged import best_judged  # brings the libraries of training, which a start does without

        folder = self.folder(run)
        loss, held_out = _curve(folder.path, *_version(folder.log.path))
        measured, shown = dict(held_out), _pictures(folder)
        config = folder.config()
        kept = loras(folder.checkpoints)
        evaluated = best_evaluated(folder, kept)
        return {
            **self.summary(run),
            "config": config,
            "prompts": list(prompts(config)),
            "curve": {"loss": loss, "held_out": held_out},
            "checkpoints": [
                {"step": step, "held_out": measured.get(step), "pictures": shown.get(step, [])}
                for step in kept
            ],
            "best": best_judged(folder, kept) if evaluated is None else evaluated,
            "evaluated": evaluated is not None,
            "before": shown.get(0, []),
        }

    def files(self, run: str) -> dict[str, Path]:
        """Path below a run's folder, with "/", → each file that is whole and of the run, and no link. Raises
        StorageError."""
        root = self.folder(run).path
        found = {}
        for parent, folders, names in os.walk(root):
            own = Path(parent)
            if own.resolve() != root.resolve() / own.relative_to(root):  # a junction of Windows
                folders.clear()
                continue
            folders[:] = [f for f in folders if not f.startswith(".")]
            paths = [own / n for n in names if not n.startswith(".") and n != IN_USE]
            found |= {p.relative_to(root).as_posix(): p for p in paths if p.is_file() and not p.is_symlink()}
        return dict(sorted(found.items()))

    def size(self) -> int:
        """Bytes of all runs."""
        return sum(size(self.root / run) for run in self.ids())

    def delete(self, run: str) -> None:
        """Remove the folder of a run; its LoRA among ComfyUI's stays.

        Raises StorageError while it is trained, and when the disk refuses.
        """
        path = self.folder(run).path
        if is_in_use(path):
            raise StorageError(f"run {run} is being trained; stop it first, then delete it")
        doomed = path.with_name(f".{path.name}.deleted")  # half a run is no run
        try:
            if doomed.exists():
                shutil.rmtree(doomed)
            path.rename(doomed)
            shutil.rmtree(doomed)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(
                f"run {run} cannot be deleted ({reason}); close what has its files open"
            ) from error


def _folders(parent: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(parent) as entries:
            found = [e for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return
    # A junction of Windows is a folder to scandir.
    yield from (
        e for e in found if os.path.realpath(e.path) == os.path.join(os.path.realpath(parent), e.name)
    )


def _has_lora(checkpoints: Path) -> bool:
    try:
        with os.scandir(checkpoints) as entries:
            return any(steps.step_of(e.name, LORA) is not None for e in entries)
    except OSError:
        return False


def _pictures(folder: RunFolder) -> dict[int, list[str]]:
    """Step → names of its files in `previews/`, by prompt."""
    return {step: [p.name for p in files] for step, files in pictures(folder).files.items()}


def _plain_steps(config: dict[str, Any]) -> int | None:
    """Steps that were asked for; None when epochs decided, or nothing is known."""
    asked, epochs = config.get("steps"), config.get("epochs")
    return asked if isinstance(asked, int) and not epochs else None


def _version(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


Point = tuple[int, float | None]


@lru_cache(maxsize=256)
def _curve(run: Path, _changed: int, _bytes: int) -> tuple[list[Point], list[Point]]:
    """(loss, held-out loss); read again when the log is another."""
    folder = RunFolder(run)
    measured = {v.step: v.loss if math.isfinite(v.loss) else None for v in folder.log.validations()}
    return [(step, loss) for step, loss, _ in curve(folder, CURVE_POINTS)], sorted(measured.items())
