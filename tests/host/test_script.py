"""Training from a script, in a process of its own and without a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workbench.dev import comfyui

from .loaded import write_pictures

pytestmark = pytest.mark.slow


def script(repo_root: Path, checkpoint: Path, tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    folder = os.environ.get("IGL_COMFYUI") or comfyui.find()
    command = [
        *[sys.executable, str(repo_root / "scripts" / "train.py"), "--cpu", "--comfyui", str(folder)],
        *["--checkpoint", str(checkpoint), "--pictures", str(tmp_path / "pictures")],
        *["--output", str(tmp_path / "output"), "--name", "scripted"],
        *["--resolution", "64", "--rank", "2", *more],
    ]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)


def test_the_example_script_trains_and_reports_each_step(repo_root, tiny_checkpoint, tmp_path):
    write_pictures(tmp_path / "pictures", [(64, 64)] * 2)
    first = script(repo_root, tiny_checkpoint, tmp_path, "--steps", "3")
    assert first.returncode == 0, first.stderr
    assert [line.split()[1] for line in first.stdout.splitlines() if line.startswith("step ")] == [
        "1/3", "2/3", "3/3",
    ]  # fmt: skip
    assert (tmp_path / "output" / "loras" / "scripted.safetensors").exists()


def test_the_example_script_says_what_is_wrong(repo_root, tiny_checkpoint, tmp_path):
    (tmp_path / "pictures").mkdir()
    failed = script(repo_root, tiny_checkpoint, tmp_path)
    assert failed.returncode == 1
    assert "DatasetError" in failed.stderr.splitlines()[-1]


def test_the_cache_is_shown_and_cleared_by_a_script(repo_root, tmp_path):
    from in_graph_lora.trainer.data.store import Entry, Store, key_of

    folder = tmp_path / "in-graph-lora" / "cache"
    Store(folder, print).put(key_of(1), Entry({"latent": torch.zeros(4, 8, 8)}))

    def said(*more: str) -> str:
        command = [sys.executable, str(repo_root / "scripts" / "clear_cache.py"), str(tmp_path), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "there are 1 entries" in said()
    assert "deleted 1 entries" in said("--clear")
    assert list(folder.rglob("*.safetensors")) == []
