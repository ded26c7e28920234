"""What the scripts say and do before any ComfyUI has started."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .test_sweep import job


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A folder that passes for one."""
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, repo_root: Path) -> Any:
    monkeypatch.syspath_prepend(repo_root / "scripts")
    return importlib.import_module("_workers")


def said(script: Path, *arguments: Any, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    own = {**os.environ, "PYTHONUTF8": "0", **env}
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=300, check=False)


def test_the_process_that_has_no_gpu_says_so(repo_root: Path, tmp_path: Path) -> None:
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    done = said(repo_root / "scripts" / "train.py", tmp_path, **place, CUDA_VISIBLE_DEVICES="3")
    assert done.returncode == 1
    assert done.stderr == (
        "there are 2 processes for the 1 devices of CUDA_VISIBLE_DEVICES (3); start one for each\n"
    )


def test_several_processes_need_a_job(repo_root: Path, tmp_path: Path) -> None:
    given = ["--comfyui", tmp_path, "--checkpoint", "a.safetensors", "--pictures", tmp_path]
    done = said(repo_root / "scripts" / "train.py", *given, RANK="0", WORLD_SIZE="2")
    assert done.returncode == 2
    assert "several processes train a job together" in done.stderr


def test_a_queue_goes_by_the_gpus_that_may_be_used(workers, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)

    def options() -> list[tuple[str, ...]]:
        return [device.options for device in workers.devices(None, [])]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert options() == [("--cuda-device", "0"), ("--cuda-device", "1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert options() == [("--cuda-device", "2"), ("--cuda-device", "5")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert options() == [()], "ComfyUI takes the only one"


def test_a_torn_line_of_a_process_does_not_end_the_queue(workers) -> None:
    assert workers.told('in-graph-lora: {"step": 3}\n') == {"step": 3}
    assert workers.told('in-graph-lora: {"step": 3}warning\n') is None
    assert workers.told("step 3\n") is None


def test_a_job_whose_folder_is_deleted_does_not_end_the_queue(workers, comfyui, tmp_path) -> None:
    from in_graph_lora.trainer.job_queue import FAILED, JobQueue

    for name in ("gone", "there"):
        job().write(tmp_path / "jobs" / name)
    queue = JobQueue(tmp_path / "jobs")
    shutil.rmtree(tmp_path / "jobs" / "gone")
    stopped = workers.Workers(queue, comfyui, [], [workers.Device("")], []).run()
    assert not stopped
    assert queue.progress["gone"].state == FAILED
    assert "gone was deleted" in queue.progress["gone"].error
    assert (tmp_path / "jobs" / "there" / "train.log").exists(), "it went on with the rest"


def test_names_that_the_console_has_no_letters_for_do_not_end_the_queue(repo_root, comfyui, tmp_path) -> None:
    torn = tmp_path / "jobs" / "小猫"
    torn.mkdir(parents=True)
    (torn / "job.json").write_text("{")
    given = [tmp_path / "jobs", "--comfyui", comfyui, "--cpu"]
    done = said(repo_root / "scripts" / "train_queue.py", *given, PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "??" in done.stdout
    assert "小猫" in (tmp_path / "jobs" / "queue.md").read_text(encoding="utf-8")
