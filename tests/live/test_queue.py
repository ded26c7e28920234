"""A folder of jobs, trained one after the other and two at once, without a server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from in_graph_lora.trainer.job_queue import JobQueue
from in_graph_lora.trainer.runs.checkpoints import newest
from workbench.client import Client

from .test_training import graph, make_pictures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def job(server) -> dict[str, Any]:
    """As the server writes it, with sample pictures."""
    pictures = make_pictures(server.base / "input" / "queue-pictures")
    prompt = graph(pictures.name, name="queued", where="job", preview=["14", 0])
    prompt = {key: prompt[key] for key in ("1", "2", "3", "4")}
    prompt["14"] = {
        "class_type": "TrainPreview",
        "inputs": {
            "prompts": "aawxbc figurine", "every": 1000, "held_out": 0, "measure_every": 50,
            "keep_best": False, "patience": 0, "negative": "", "seed": 0, "sampling_steps": 1, "cfg": 1.0,
            "sampler_name": "euler", "scheduler": "normal", "width": 64, "height": 64,
            "checkpoint_every": 100, "keep_states": 2,
        },
    }  # fmt: skip
    with Client(server.url) as client:
        done = client.run(prompt)
    assert done.status == "success", done.error
    written = server.base / "output" / "in-graph-lora" / "jobs" / "queued" / "job.json"
    return json.loads(written.read_text())


def put(folder: Path, content: Any, **inputs: Any) -> None:
    """A job with other inputs of Train LoRA."""
    content = json.loads(json.dumps(content))
    content["graph"]["4"]["inputs"].update(inputs)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(content))


def command(repo_root: Path, comfyui: Path, base: Path, folder: Path, *more: str) -> list[str]:
    return [
        *[sys.executable, str(repo_root / "scripts" / "train_queue.py"), str(folder)],
        *["--cpu", "--comfyui", str(comfyui), *more, "--"],
        *["--base-directory", str(base), "--disable-api-nodes"],
    ]


def said(*where: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*where), capture_output=True, text=True, timeout=1200, check=False)


def progress(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "queue.json").read_text())["jobs"]


def test_a_folder_is_trained_on_two_devices_a_sweep_is_compared_and_the_page_lists_the_runs(
    server, repo_root, comfyui, tmp_path, job
) -> None:
    put(tmp_path / "newer", {**job, "format": 99})
    put(tmp_path / "rates", job, learning_rate={"sweep": [1e-3, 2e-3]})
    done = said(repo_root, comfyui, server.base, tmp_path, "--devices", "0,1")
    assert done.returncode == 1, done.stdout + done.stderr
    names = [f"rates/queued_learning_rate_{rate}" for rate in ("0.001", "0.002")]
    states = progress(tmp_path)
    assert {name: own["state"] for name, own in states.items()} == {
        "newer": "failed",
        **dict.fromkeys(names, "finished"),
    }, done.stdout + done.stderr
    assert "reads up to" in states["newer"]["error"]
    assert {states[name]["device"] for name in names} == {"0", "1"}
    assert all(Path(states[name]["lora"]).is_file() and states[name]["loss"] > 0 for name in names)
    evidence = json.loads((tmp_path / "queue.json").read_text())["evidence"]["rates"]
    assert evidence["error"] == ""
    assert Path(evidence["report"]).is_file()
    report = json.loads(Path(evidence["report"]).with_name("report.json").read_text())
    labels = [column["label"] for column in report["columns"]]
    assert labels[1:] == ["queued_learning_rate_0.001", "queued_learning_rate_0.002"]
    summary = (tmp_path / "queue.md").read_text()
    assert "| 0.001 | finished |" in summary
    assert evidence["report"] in summary

    with urlopen(f"{server.url}/in_graph_lora/runs?limit=100") as answer:
        runs = {run["id"].split("/")[0]: run["state"] for run in json.load(answer)["runs"]}
    assert all(runs[name.split("/")[1]] == "finished" for name in names), "the Runs panel"

    before = {name: (tmp_path / name / "train.log").stat().st_mtime_ns for name in names}
    shutil.rmtree(tmp_path / "newer")
    again = said(repo_root, comfyui, server.base, tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert before == {name: (tmp_path / name / "train.log").stat().st_mtime_ns for name in names}


def test_a_queue_that_was_killed_keeps_the_work_goes_on_and_lets_no_second_one_in(
    server, repo_root, comfyui, tmp_path, job
) -> None:
    put(tmp_path / "long", job, name="queued-long", steps=50_000)
    where = repo_root, comfyui, server.base, tmp_path
    runs = server.base / "output" / "in-graph-lora" / "queued-long"
    with subprocess.Popen(
        command(*where), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as killed:
        wait_for(lambda: any('"StepDone"' in log.read_text() for log in runs.glob("*/events.jsonl")))
        second = said(*where)
        assert second.returncode == 1
        assert f"another queue trains the jobs of {tmp_path} (process {killed.pid})" in second.stderr
        killed.kill()
        killed.communicate(timeout=60)
    (run,) = runs.iterdir()
    wait_for(lambda: not (run / "training.pid").exists())
    checkpoint, _ = newest(run / "checkpoints")
    assert checkpoint is not None
    assert 0 < checkpoint.step < 50_000, "its process kept what was trained"

    with subprocess.Popen(
        command(*where), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as goes_on:
        wait_for(lambda: (newest_step(run) or 0) > checkpoint.step)
        goes_on.terminate()
        out, errors = goes_on.communicate(timeout=600)
    assert goes_on.returncode == 130, out + errors
    assert "stopped; the same command goes on" in errors
    assert progress(tmp_path)["long"]["state"] == "stopped"
    assert [path.name for path in runs.iterdir()] == [run.name], "the same run"
    with JobQueue.lock(tmp_path):
        assert JobQueue(tmp_path).waiting


def newest_step(run: Path) -> int | None:
    """Of the log."""
    lines = (run / "events.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if '"StepDone"' in line and line.endswith("}")]
    return max(steps, default=None)


def wait_for(true: Any, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)
