"""A job that the server wrote, trained without a server: the same LoRA as on the canvas."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from in_graph_lora.trainer.runs.checkpoints import newest
from workbench.client import Client

from .test_training import graph, make_pictures

pytestmark = pytest.mark.slow


def command(repo_root: Path, comfyui: Path, base: Path, output: Path, job: Path) -> list[str]:
    return [
        *[sys.executable, str(repo_root / "scripts" / "train.py"), str(job), "--cpu"],
        *["--comfyui", str(comfyui), "--"],
        *["--base-directory", str(base), "--output-directory", str(output), "--disable-api-nodes"],
        *["--database-url", f"sqlite:///{output}/comfyui.db"],
    ]


def trained(*where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*where), capture_output=True, text=True, timeout=300, check=False)


def interrupted(*where: Path, at: str) -> subprocess.CompletedProcess[str]:
    """With Ctrl-C after a line that begins so."""
    with subprocess.Popen(
        command(*where), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [next(process.stdout)]
        while not lines[-1].startswith(at):
            lines.append(next(process.stdout))
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, "".join(lines) + rest, errors)


def test_a_job_gives_the_canvas_lora_bit_for_bit_goes_on_and_names_what_changed(
    server, repo_root, comfyui, tmp_path
) -> None:
    pictures = make_pictures(server.base / "input" / "job-pictures")
    with Client(server.url) as client:
        written, here = (
            client.run(
                {
                    k: v
                    for k, v in graph(pictures.name, name="job", where=where).items()
                    if k in ("1", "2", "3", "4")
                }
            )
            for where in ("job", "here")
        )
    assert written.status == here.status == "success", (written.error, here.error)
    loras = server.base / "output" / "loras"
    assert [p.name for p in loras.glob("job*.safetensors")] == ["job.safetensors"], "a job trains nothing"
    (said,) = written.outputs["4"]["text"]
    job = server.base / "output" / "in-graph-lora" / "jobs" / "job"
    assert f"train.py {job}" in said

    done = trained(repo_root, comfyui, server.base, tmp_path, job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("step ")] == [
        "1/3",
        "2/3",
        "3/3",
    ]
    assert f"LoRA: {tmp_path / 'loras' / 'job.safetensors'}" in done.stdout
    mine, theirs = (load_file(folder / "job.safetensors") for folder in (tmp_path / "loras", loras))
    assert mine.keys() == theirs.keys()
    assert all(mine[key].equal(theirs[key]) for key in mine)

    (run,) = (tmp_path / "in-graph-lora" / "job").iterdir()
    longer = json.loads((run / "job.json").read_text())
    longer["graph"]["4"]["inputs"]["steps"] = 5000
    (run / "job.json").write_text(json.dumps(longer))
    stopped = interrupted(repo_root, comfyui, server.base, tmp_path, run, at="step 6/")
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "stopped; the same command goes on"
    assert "going on from step 3" in stopped.stdout
    checkpoint, _ = newest(run / "checkpoints")
    assert checkpoint is not None
    assert 6 <= checkpoint.step < 5000, "what was trained is kept"

    (pictures / "0.txt").write_text("a blue toy")
    longer["graph"]["1"]["inputs"]["ckpt_name"] = "gone.safetensors"
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "job.json").write_text(json.dumps(longer))
    changed = trained(repo_root, comfyui, server.base, tmp_path, job)
    assert changed.returncode == 1
    assert "(changed: 0.jpg)" in changed.stderr.splitlines()[-1]
    gone = trained(repo_root, comfyui, server.base, tmp_path, tmp_path / "gone")
    assert gone.returncode == 1
    assert "gone.safetensors" in gone.stderr.splitlines()[-1]
