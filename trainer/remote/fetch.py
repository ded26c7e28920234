"""A run on a ComfyUI elsewhere, brought here: its folder, and its LoRA among the LoRAs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ..config import TrainConfig
from ..errors import RemoteError
from ..files import UNFINISHED, not_written, read_json
from ..runs.checkpoints import loras
from ..runs.folder import RunFolder
from ..runs.placing import Places
from .worker import Worker

RECORD = "run.json"


async def fetch_run(worker: Worker, run: str, runs: Path) -> RunFolder | None:
    """Into `<runs>/<name>/<run>`. What is here with the same size and time is not fetched again.

    None where the worker has no such run. Raises RemoteError, StorageError.
    """
    name, own = run.split("/")
    if not (_is_plain(name) and _is_plain(own)):
        raise RemoteError(f"the worker tells of a run {run!r}, which is no folder's name; it is left there")
    files = await worker.patiently(lambda: worker.run_files(run))
    if not files:
        return None
    for file in files:
        parts = PurePosixPath(file["name"]).parts
        if not parts or not all(map(_is_plain, parts)):
            raise RemoteError(f"the worker tells of a file {file['name']!r} outside of its run; left there")
    files.sort(key=lambda file: file["name"] == RECORD)  # last: it says what the others are
    folder: Path | None = None
    try:
        (runs / name).mkdir(parents=True, exist_ok=True)
        draft = runs / name / f".{own}.{os.getpid()}{UNFINISHED}"
        await worker.patiently(lambda: worker.download(run, RECORD, draft))
        folder = _place(runs / name, own, draft)
        draft.unlink()
        for file in files:
            path = folder / file["name"]
            if not _same(path, file["bytes"], file["changed"]):
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
                await worker.patiently(
                    lambda name=file["name"], draft=draft: worker.download(run, name, draft)
                )
                os.utime(draft, (file["changed"], file["changed"]))
                draft.replace(path)
    except OSError as error:
        raise not_written(folder or runs / name, error) from error
    return RunFolder(folder)


def put_lora(folder: RunFolder, places: Places) -> Path | None:
    """The run's result as if it had been trained here, under a name that is free; the newest step of a run
    that was stopped. None where there is no LoRA. Raises ConfigError, StorageError."""
    config = TrainConfig.from_dict(folder.config())
    record = folder.record()
    done = record.finished if record else None
    kept = loras(folder.checkpoints)
    source = folder.checkpoints / done.source if done else kept[max(kept)] if kept else None
    if source is None or not source.is_file():
        return None
    there = places.result(config, f"{config.name}{source.suffix}").parent
    held = [p.name for p in there.glob("*" + source.suffix) if p.name.startswith(config.name)]
    name = next((name for name in held if places.hold(source, config, name)), None)
    if name is None:
        name = places.put(source, config, lambda _: None)
    if done and done.lora != name:
        folder.finish(replace(done, lora=name))
    return places.result(config, name)


def _place(parent: Path, own: str, record: Path) -> Path:
    """The folder of this run here; beside another run that has its name."""
    key = _key(record)
    n, path = 1, parent / own
    while path.exists() and _key(path / RECORD) not in ("", key):
        n += 1
        path = parent / f"{own}-{n}"
    return path


def _key(record: Path) -> str:
    content = read_json(record)
    return json.dumps(content.get("key", "")) if isinstance(content, dict) else ""


def _same(path: Path, size: int, changed: float) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return stat.st_size == size and abs(stat.st_mtime - changed) < 0.01


def _is_plain(name: str) -> bool:
    """Names of one folder or file, on any system."""
    return bool(name) and name == name.strip() and name[0] != "." and not set(name) & set('/\\:*?"<>|\0')
