"""A folder of jobs: what is skipped, what is trained again, and who may."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from in_graph_lora.trainer.errors import JobError
from in_graph_lora.trainer.job_queue import (
    FAILED,
    FINISHED,
    RECORD,
    STOPPED,
    SUMMARY,
    TRAINING,
    Evidence,
    JobQueue,
    listed,
)

from .test_sweep import job


def states(folder: Path) -> dict[str, str]:
    return {name: own.state for name, own in JobQueue(folder).progress.items()}


def finish(queue: JobQueue, name: str, lora: Path) -> None:
    lora.write_bytes(b"x")
    queue.update(name, state=FINISHED, lora=str(lora), step=3, steps=3, loss=0.25, seconds=61.0)
    queue.write()


def test_finished_jobs_are_skipped_until_they_or_their_lora_change(tmp_path: Path) -> None:
    for name in ("2", "10"):
        job(rank=int(name)).write(tmp_path / name)
    queue = JobQueue(tmp_path)
    assert [e.name for e in queue.waiting] == ["2", "10"]
    finish(queue, "2", tmp_path / "toy.safetensors")
    queue.update("10", state=FAILED, error="out of memory")
    queue.write()
    assert states(tmp_path) == {"2": "finished", "10": "waiting"}, "what failed is tried again"
    job(rank=3).write(tmp_path / "2")
    assert states(tmp_path)["2"] == "waiting"
    job(rank=2).write(tmp_path / "2")
    finish(JobQueue(tmp_path), "2", tmp_path / "toy.safetensors")
    assert states(tmp_path)["2"] == "finished"
    (tmp_path / "toy.safetensors").unlink()
    assert states(tmp_path)["2"] == "waiting"


def test_a_sweep_is_its_jobs_and_is_reported_when_all_are_settled(tmp_path: Path) -> None:
    job({"prompts": "x"}, rank={"sweep": [8, 16]}).write(tmp_path / "ranks")
    queue = JobQueue(tmp_path)
    first, second = (f"ranks/toy_rank_{rank}" for rank in (8, 16))
    assert [e.name for e in queue.entries] == [first, second]
    assert all((tmp_path / name / "job.json").is_file() for name in (first, second))
    finish(queue, first, tmp_path / "a.safetensors")
    queue.update(second, state=STOPPED)
    assert queue.sweep_to_report("ranks") == []
    finish(queue, second, tmp_path / "b.safetensors")
    assert queue.loras(queue.sweep_to_report("ranks")) == ["a.safetensors", "b.safetensors"]
    assert "| 8 | finished | 0.2500 | a.safetensors |" in (tmp_path / SUMMARY).read_text()
    assert "1:01" in queue.table()
    assert queue.succeeded
    queue.evidence["ranks"] = Evidence(error="out of memory")
    assert not queue.succeeded, "the report was asked for too"
    assert all(len(line) <= 40 for line in queue.table(40).splitlines())


def test_the_page_lists_what_is_there_without_writing(tmp_path: Path) -> None:
    for name in ("a", "b", "gone"):
        job().write(tmp_path / name)
    job(rank={"sweep": [8, 16]}).write(tmp_path / "ranks")
    assert [(j["name"], j["state"]) for j in listed(tmp_path)] == [
        (name, "waiting") for name in ("a", "b", "gone", "ranks")
    ]
    assert not (tmp_path / RECORD).exists()
    queue = JobQueue(tmp_path)
    queue.update("a", state=FAILED, error="out of memory")
    queue.update("b", state=TRAINING, step=2, steps=9)
    queue.write()
    shutil.rmtree(tmp_path / "gone")
    job().write(tmp_path / "new")
    before = (tmp_path / RECORD).read_bytes()
    shown = {j["name"]: j for j in listed(tmp_path)}
    assert list(shown) == ["a", "b", "new", "ranks/toy_rank_8", "ranks/toy_rank_16"]
    assert shown["a"]["error"] == "out of memory"
    assert (shown["b"]["state"], shown["b"]["step"]) == ("stopped", 2), "no queue runs"
    content = json.loads(before)
    (tmp_path / RECORD).write_text(json.dumps({**content, "process": os.getppid()}))
    assert {j["name"]: j["state"] for j in listed(tmp_path)}["b"] == "training"
    (tmp_path / RECORD).write_text("{")
    assert {j["state"] for j in listed(tmp_path)} == {"waiting"}
    assert listed(tmp_path / "nowhere") == []


def test_a_job_that_cannot_be_read_is_named_and_the_others_wait(tmp_path: Path) -> None:
    job().write(tmp_path / "good")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "job.json").write_text("{")
    queue = JobQueue(tmp_path)
    assert [e.name for e in queue.waiting] == ["good"]
    assert not queue.finished
    assert "no whole JSON" in queue.progress["torn"].error


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"jobs": {', '"jobs": 3, "old": {'),
    ],
)
def test_a_damaged_record_is_told_and_written_anew(tmp_path: Path, damage: Any) -> None:
    job().write(tmp_path / "good")
    JobQueue(tmp_path)
    path = tmp_path / RECORD
    path.write_text(damage(path.read_text()))
    queue = JobQueue(tmp_path)
    assert "is damaged" in queue.notes[0]
    assert [e.name for e in queue.waiting] == ["good"]
    assert json.loads(path.read_text())["jobs"].keys() == {"good"}


def test_a_second_queue_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    hold = (
        "import sys, time\nfrom filelock import FileLock\n"
        f"lock = FileLock({str(tmp_path / '.queue.lock')!r})\nlock.acquire()\n"
        "print('held', flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(JobError, match="another queue trains"):
                JobQueue.lock(tmp_path)
        finally:
            other.kill()
    with JobQueue.lock(tmp_path):
        pass
    with pytest.raises(JobError, match="is no folder"):
        JobQueue.lock(tmp_path / "gone")
