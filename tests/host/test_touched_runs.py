"""Run folders that someone or something has touched: what is not ours or not whole is left out and named.

A real run of 6 steps, stopped, with checkpoints at 2, 4 and 6. Each alteration is made on a copy of its
folder, which is then found again, looked at as Load Run does, and trained two steps on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from in_graph_lora.trainer.config import AdapterConfig, SaveConfig, TrainConfig, ValidationConfig
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.data.cache import TrainingData
from in_graph_lora.trainer.errors import StorageError, TrainerError
from in_graph_lora.trainer.events import Notice
from in_graph_lora.trainer.files import clear_unfinished
from in_graph_lora.trainer.runs.checkpoints import newest
from in_graph_lora.trainer.runs.finding import find_run, finished
from in_graph_lora.trainer.runs.folder import RunFolder
from in_graph_lora.trainer.runs.past import BEST, NEWEST, load_past_run
from in_graph_lora.trainer.runs.placing import Places
from in_graph_lora.trainer.runs.result import Result

from ..tiny_models import TINY, build, samples
from .loaded import train_engine

pytestmark = pytest.mark.slow

FAMILY, KEY, NAME = "unheard_of", "the key", "20260102-030405"
INDEX, STATE, LORA = "step_000006.json", "step_000006.state.safetensors", "step_000006.safetensors"

Alter = Callable[[Path], None]


def config(steps: int) -> TrainConfig:
    return TrainConfig(
        name="touched",
        steps=steps,
        adapter=AdapterConfig(rank=2),
        save=SaveConfig(every=2, keep=3),
        validation=ValidationConfig(held_out=1, every=2, keep_best=True),
    )


class Bench:
    """A tiny network, its samples, and a run of six steps."""

    def __init__(self, folder: Path) -> None:
        self.patcher = build(TINY[FAMILY])
        with torch.inference_mode(False):
            x_0, conditions = samples(self.patcher, TINY[FAMILY], 3)
            self.samples = [
                CachedSample(latent=x, conditioning=c, key=str(i), caption="a caption")
                for i, (x, c) in enumerate(zip(x_0, conditions, strict=True))
            ]
        made = self.train(folder, 6)
        made.run.rename(folder / "runs" / NAME)
        self.output = folder

    def train(self, output: Path, steps: int, emit: Any = lambda e: None, folder: Any = None) -> Result:
        data = TrainingData(samples=self.samples[:2], validation_samples=self.samples[2:])
        return train_engine(self.patcher, data, config(steps), output, emit, folder=folder, key=KEY)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(tmp_path_factory.mktemp("run"))
    torch.set_num_threads(threads)


# ---------------------------------------------------------------- alterations

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "null": b"null",
    "list": b"[1, 2]",
    "number": b"7",
    "text": b'"text"',
    "empty object": b"{}",
    "deep": b'{"a":' * 100_000,
    "deep list": b"[" * 100_000,
    "binary": bytes(range(256)) * 8,
    "utf-16": '{"event": "StepDone"}'.encode("utf-16"),
    "NaN": b'{"step": NaN, "key": NaN}',
    "huge number": b'{"step": 1' + b"0" * 5000 + b"}",
    "zeros": b"\0" * 500,
}
VALUES: list[Any] = [None, -1, 1.5, [], True, "../../../etc/passwd", 10**30]


def content(file: str, data: bytes) -> Alter:
    return lambda run: (run / file).write_bytes(data) and None


def half(file: str) -> Alter:
    def alter(run: Path) -> None:
        data = (run / file).read_bytes()
        (run / file).write_bytes(data[: len(data) // 2])

    return alter


def gone(file: str) -> Alter:
    return lambda run: (run / file).unlink()


def folder_instead(file: str) -> Alter:
    def alter(run: Path) -> None:
        (run / file).unlink()
        (run / file).mkdir()

    return alter


def link_to_nothing(file: str) -> Alter:
    def alter(run: Path) -> None:
        (run / file).unlink()
        (run / file).symlink_to("nowhere")

    return alter


def field(file: str, path: tuple[str, ...], value: Any) -> Alter:
    """One field of a JSON file set to a value, or taken out (…)."""

    def alter(run: Path) -> None:
        whole = json.loads((run / file).read_text())
        inner = whole
        for name in path[:-1]:
            inner = inner[name]
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        (run / file).write_text(json.dumps(whole))

    return alter


def every_line(name: str, value: Any) -> Alter:
    """One field of all lines of the log."""

    def alter(run: Path) -> None:
        lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop(name, None)
            if value is not ...:
                line[name] = value
        (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return alter


def beside(source: str, name: str) -> Alter:
    return lambda run: shutil.copy(run / "checkpoints" / source, run / "checkpoints" / name) and None


def swapped(one: str, other: str) -> Alter:
    def alter(run: Path) -> None:
        a, b = run / one, run / other
        first, second = a.read_bytes(), b.read_bytes()
        a.write_bytes(second)
        b.write_bytes(first)

    return alter


def alterations() -> dict[str, Alter]:
    found: dict[str, Alter] = {}
    jsons = ("run.json", "config.json", "events.jsonl", f"checkpoints/{INDEX}")
    tensors = (f"checkpoints/{STATE}", f"checkpoints/{LORA}")
    for file in jsons:
        found |= {f"{file} is {name}": content(file, data) for name, data in CONTENTS.items()}
    for file in tensors:
        chosen = ("empty", "binary", "zeros", "text")
        found |= {f"{file} is {name}": content(file, CONTENTS[name]) for name in chosen}
    for file in (*jsons, *tensors):
        found[f"{file} is half"] = half(file)
        found[f"{file} is gone"] = gone(file)
        found[f"{file} is a folder"] = folder_instead(file)
        found[f"{file} is a link to nothing"] = link_to_nothing(file)
    fields = {
        "run.json": [("key",), ("dataset",), ("finished",), ("finished", "lora"), ("finished", "source"),
                     ("finished", "steps"), ("finished", "keep_best")],
        f"checkpoints/{INDEX}": [("format",), ("step",), ("numbers",), ("sha256",), ("numbers", "groups"),
                                 ("numbers", "schedule"), ("numbers_sha256",)],
        "config.json": [("steps",), ("adapter",), ("adapter", "rank"), ("data",)],
    }  # fmt: skip
    for file, paths in fields.items():
        for path in paths:
            for value in (..., *VALUES):
                shown = "missing" if value is ... else repr(value)[:20]
                found[f"{file} {'.'.join(path)} {shown}"] = field(file, path, value)
    for name in ("event", "step", "loss", "best"):
        for value in (..., *VALUES):
            found[f"lines' {name} {'missing' if value is ... else repr(value)[:20]}"] = every_line(
                name, value
            )
    copies = {
        INDEX: ["step_000006 (1).json", "step_7.json", "step_0000007.json", "step_000009.json", "step_.json",
                "step_-00001.json", "step_best.json", "step_000006.json.bak", "step_٠٠٠٠٠٧.json"],
        LORA: ["step_000006 copy.safetensors", "step_best.safetensors", "step_000008.safetensors",
               "step_000006.safetensors.part", "Copy of step_000006.safetensors"],
        STATE: ["step_000006 (2).state.safetensors", "step_000008.state.safetensors", "x.state.safetensors"],
    }  # fmt: skip
    for source, names in copies.items():
        found |= {f"{name} beside": beside(source, name) for name in names}
    two, six = "checkpoints/step_000002", "checkpoints/step_000006"
    found |= {
        f"{e} of two steps swapped": swapped(two + e, six + e)
        for e in (".json", ".safetensors", ".state.safetensors")
    }
    return found


ALTERATIONS = alterations()


def test_there_are_as_many_alterations_as_were_tried_by_hand() -> None:
    assert len(ALTERATIONS) >= 241


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_run_is_used_as_far_as_it_is_whole(bench: Bench, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out"
    shutil.copytree(bench.output, output)
    runs = output / "runs"
    run = runs / NAME
    ALTERATIONS[name](run)
    notices: list[str] = []

    def emit(event: Any) -> None:
        if isinstance(event, Notice):
            notices.append(event.message)

    for step in (NEWEST, BEST, 2, 6):
        try:
            assert load_past_run(RunFolder(run), step).lora
        except TrainerError as error:
            notices.append(str(error))

    found = find_run(runs, KEY, config(8), "", 8, emit)
    if found is not None:
        try:
            finished(found, config(6), 6, Places(loras=output / "loras", embeddings=output / "embeddings"))
        except TrainerError as error:
            notices.append(str(error))
    whole = newest(found.checkpoints)[0] if found is not None else None
    reached = whole.step if whole else 0
    try:
        result = bench.train(output, 8, emit, found)
    except StorageError as error:
        notices.append(str(error))
        in_the_way = "is a folder" in name
        assert in_the_way
    else:
        assert len(result.losses) == 8
        log = [json.loads(line) for line in (result.run / "events.jsonl").read_text().splitlines()]
        assert [e["step"] for e in log if e["event"] == "StepDone"][-(8 - reached) :] == list(
            range(reached + 1, 9)
        )
    changed = whole is None or reached < 6 or "lines" in name or "events" in name or "beside" in name
    assert notices or not changed, "what was left out is named"


def test_a_run_that_was_not_altered_goes_on_from_its_last_step(bench: Bench, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(bench.output, output)
    notices: list[str] = []
    found = find_run(output / "runs", KEY, config(8), "", 8, lambda e: notices.append(e))
    assert found is not None
    assert not notices
    assert newest(found.checkpoints)[0].step == 6  # type: ignore[union-attr]


def test_drafts_of_killed_processes_are_cleared_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    """Also in other runs of the name; process 1 lives, and is older than any file here."""
    runs = tmp_path / "runs"
    (runs / "a" / "checkpoints").mkdir(parents=True)
    dead = [
        runs / "a" / "checkpoints" / ".step_000002.safetensors.4194303.part",
        runs / "a" / ".run.json.4194303.part",
        runs / f".mine.safetensors.{os.getpid()}.part",
    ]
    others = [runs / ".lora.safetensors.1.part", runs / "a" / ".hidden", runs / "notes.part"]
    for path in (*dead, *others):
        path.write_bytes(b"half")
    clear_unfinished(runs)
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in others)
