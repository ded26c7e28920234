"""`accelerate launch scripts/train.py JOB`, as users start it: two processes, each with its own ComfyUI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from in_graph_lora.trainer.runs.checkpoints import newest
from workbench.client import Client

from .test_training import graph, make_pictures

pytestmark = pytest.mark.slow


def launched(repo_root: Path, comfyui: Path, base: Path, output: Path, job: Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of two processes on this machine."""
    command = [
        *[sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
        *["--main_process_port", "0", str(repo_root / "scripts" / "train.py"), str(job), "--cpu"],
        *["--comfyui", str(comfyui), "--"],
        *["--base-directory", str(base), "--output-directory", str(output), "--disable-api-nodes"],
        *["--database-url", f"sqlite:///{output}/comfyui.db"],
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout, done.stderr


def test_accelerate_launch_gives_the_lora_of_the_canvas(
    server, repo_root, comfyui, tmp_path
) -> None:
    pictures = make_pictures(server.base / "input" / "processes-pictures")
    with Client(server.url) as client:
        for where in ("job", "here"):
            nodes = graph(pictures.name, name="processes", where=where)
            done = client.run({k: v for k, v in nodes.items() if k in ("1", "2", "3", "4")})
            assert done.status == "success", done.error
    job = server.base / "output" / "in-graph-lora" / "jobs" / "processes"

    code, said, errors = launched(repo_root, comfyui, server.base, tmp_path, job)
    assert code == 0, errors
    steps = [line.split()[1] for line in said.splitlines() if line.startswith("step ")]
    assert steps == ["1/3", "2/3", "3/3"], "one process tells"
    assert said.count("LoRA: ") == 1
    mine, theirs = (
        load_file(f / "processes.safetensors") for f in (tmp_path / "loras", server.base / "output" / "loras")
    )
    assert mine.keys() == theirs.keys()
    assert max(float((mine[key] - theirs[key]).abs().max()) for key in mine) < 1e-4
    (run,) = (tmp_path / "in-graph-lora" / "processes").iterdir()
    checkpoint, _ = newest(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert (run / "job.json").exists()
