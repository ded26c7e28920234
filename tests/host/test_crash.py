"""`kill -9`, a full disk, a folder that cannot be written: what is on disk is whole, and the run goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workbench.dev import base

from .crash import Ended, Worker, check_whole, newest_step, outcome
from .loaded import write_pictures

STEPS = 8
KILLS, WHILE_WRITING = 20, 5
SEED = int(os.environ.get("IGL_CRASH_SEED", "4"))

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL"), pytest.mark.slow]


@contextmanager
def readable_by_all() -> Iterator[Path]:
    """A folder; pytest's own can be entered by their owner alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="module")
def worker(
    comfyui: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("crash")
    with readable_by_all() as shared:
        pictures = write_pictures(shared / "pictures", [(64, 64)] * 4)
        running = Worker(comfyui, base.prepare(folder / "base"), tiny_checkpoint, pictures, folder)
        yield running
        running.close()


def test_a_run_killed_20_times_equals_one_never_killed(worker, tmp_path, record_property):
    dice = random.Random(SEED)
    record_property("seed", SEED)
    print(f"IGL_CRASH_SEED={SEED} repeats the moments")  # noqa: T201 - shown when it fails
    straight = outcome(tmp_path / "straight", worker.run(tmp_path / "straight", steps=STEPS), STEPS)
    killed = while_writing = rounds = 0
    while killed < KILLS or while_writing < WHILE_WRITING:
        assert rounds < 20, f"{killed} kills only, {while_writing} of them during a checkpoint's writing"
        rounds += 1
        output = tmp_path / f"round_{rounds}"
        ended = None
        while ended is None or ended.signal:
            before = newest_step(output)
            child = worker.start(output, steps=STEPS)
            if killed >= KILLS and while_writing >= WHILE_WRITING:
                ended = child.wait()
            elif dice.random() < 0.5:
                ended = child.kill_when(lambda c=child, o=output: c.parts(o), dice.choice([0, 0.001]))
            else:
                ended = child.kill_after(dice.uniform(0, 1.2))
            if ended.signal:
                assert ended.signal == signal.SIGKILL
                killed += 1
                while_writing += bool(child.parts(output))
            check_whole(output)
            started = any("step" in line or "saved" in line for line in ended.said)
            if before and started:
                assert any(f"going on from step {before} of" in n for n in ended.all("notice"))
                assert not any("damaged" in n for n in ended.all("notice"))
        assert outcome(output, ended, STEPS) == straight
        assert not list(output.rglob("*.part")), "the next run clears away what a killed one had begun"
    record_property("kills", killed)
    record_property("while writing", while_writing)
    print(f"{killed} kills, {while_writing} during a checkpoint's writing, {rounds} runs")  # noqa: T201


def goes_on(worker: Worker, output: Path, reached: int, straight: Ended, steps: int) -> None:
    """What is on disk is whole, and the next run goes on from it and ends as one without a fault."""
    assert newest_step(output) == reached
    check_whole(output)
    ended = worker.run(output, steps=steps)
    assert not ended.all("error"), ended.said
    assert any(f"going on from step {reached} of" in n for n in ended.all("notice"))
    assert ended.all("step") == list(range(reached + 1, steps + 1))
    assert outcome(output, ended, steps) == outcome(straight_output(straight), straight, steps)


def straight_output(straight: Ended) -> Path:
    return Path(straight.one("lora")).parents[1]


@pytest.fixture(scope="module")
def straight(worker, tmp_path_factory) -> Ended:
    return worker.run(tmp_path_factory.mktemp("straight"), steps=4)


def refused(ended: Ended, path: str) -> None:
    """One sentence with the path and the remedy, as what was raised; the model is as it was."""
    assert ended.one("error") == "StorageError", ended.said
    assert path in ended.one("message")
    assert "make space on the disk or the folder writable" in ended.one("message")
    assert "\n" not in ended.one("message")
    assert ended.one("weights_unchanged")


# A state has 1.4 MB, a LoRA file 0.36 MB, a line of events.jsonl some hundred bytes.
@pytest.mark.parametrize(
    ("limit", "path"),
    [(700_000, "step_000003.state.safetensors"), (100_000, "step_000003.safetensors"), (100, "events.jsonl")],
    ids=["state", "lora", "log"],
)
def test_a_disk_that_gets_full(worker, tmp_path, straight, limit, path):
    output = tmp_path / "out"
    when = {"fault_at": 2, "after": "saved"} if path == "events.jsonl" else {"fault_at": 3}
    ended = worker.run(output, steps=4, hash=True, largest_file=limit, **when)
    refused(ended, path)
    assert not list(output.rglob("*.part"))
    goes_on(worker, output, 2, straight, steps=4)


def test_a_disk_that_is_full_from_the_start(worker, tmp_path):
    ended = worker.run(tmp_path / "out", steps=2, hash=True, largest_file=50)
    refused(ended, "config.json")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "in-graph-lora-test", folder]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_small_disk_that_gets_full(worker, small_disk, straight):
    output = small_disk / "out"
    ended = worker.run(output, steps=4, hash=True, fault_at=3, fill=str(small_disk), leave=1_000_000)
    refused(ended, "step_000003.state.safetensors")
    assert "No space left on device" in ended.one("message")
    (small_disk / "filler").unlink()
    goes_on(worker, output, 2, straight, steps=4)


@pytest.fixture
def shared() -> Iterator[Path]:
    with readable_by_all() as folder:
        yield folder


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
@pytest.mark.parametrize("fault_at", [0, 3])
def test_an_output_folder_that_cannot_be_written(worker, shared, straight, fault_at):
    output = shared / "out"
    ended = worker.run(output, steps=4, hash=True, fault_at=fault_at, as_nobody=True)
    refused(ended, str(output / "in-graph-lora" / "test"))
    assert "Permission denied" in ended.one("message")
    if fault_at:
        goes_on(worker, output, 2, straight, steps=4)
        readable = worker.run(output, steps=4, hash=True, as_nobody=True)
        assert not readable.all("error"), "what is finished is loaded also where nothing can be written"
    else:
        assert not [p for p in output.rglob("*") if p.is_file()]


PRIOR = {"method": "class_images", "class_prompt": "a figurine", "class_images": 1, "steps": 1}


@pytest.mark.parametrize(
    ("place", "more"),
    [
        ("in-graph-lora", {}),
        ("in-graph-lora", {"prior": PRIOR}),
        ("loras", {}),
    ],
    ids=["runs", "class-pictures", "loras"],
)
def test_a_file_in_the_place_of_a_folder(worker, tmp_path, place, more):
    output = tmp_path / "out"
    output.mkdir()
    (output / place).write_text("a file")
    ended = worker.run(output, steps=2, hash=True, **more)
    refused(ended, str(output / place))
    (output / place).unlink()
    again = worker.run(output, steps=2, **more)
    assert again.one("lora") == str(output / "loras" / "test.safetensors")
    assert again.all("step") == ([] if place == "loras" else [1, 2])
