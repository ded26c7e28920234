"""The benchmark runs, and its table says what was measured. Nothing here depends on how fast a machine is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.bench.table import Row, markdown, targets


def result(step: float, floor: float, mib: float, samples: int = 1) -> dict[str, Any]:
    return {
        "steps": [{"wall": step / 2, "cpu": step}] * 2,
        "floors": [{"wall": floor / 2, "cpu": floor}] * 2,
        "added_memory": mib * 2**20,
        "samples": samples,
        "layers": 128,
        "parameters": 3_200_000,
    }


def row(trainer: str, *results: dict[str, Any], **changes: Any) -> Row:
    settings = {"model": "sd15", "resolution": 256, "batch": 1, "clock": "cpu", "adapts": "attention"}
    return Row(trainer=trainer, results=results, **{**settings, **changes})


def test_rounds_of_a_case_are_put_together() -> None:
    r = row("ours", result(6, 5, 800), result(9, 6, 900), result(8, 5, 850))
    assert r.seconds == 8
    assert r.wall == 4
    assert r.over_floor == 1.5
    assert r.added_memory == 900


def test_table_compares_with_the_core_node_at_the_same_batch_size() -> None:
    rows = [
        row("core", result(20, 5, 8000)),
        row("core", result(99, 5, 9999), batch=2),
        row("ours", result(6, 5, 800)),
    ]
    line = next(x for x in markdown(rows).splitlines() if "| ours |" in x)
    cells = ["attention: 128 layers, 3.2 M", "6.00", "3.00", "1.20", "800", "1", "0.30", "0.10"]
    assert [c.strip() for c in line.split("|")][5:-1] == cells


def test_failed_case_is_a_row_of_its_own() -> None:
    table = markdown([row("core", failure="out of memory"), row("ours", result(6, 5, 800))])
    assert "| core | out of memory | – |" in table
    assert "| 800 | 1 | – | – |" in table


def test_targets_are_judged() -> None:
    rows = [
        row("core", result(10, 5, 8000)),
        row("ours", result(6, 5.5, 900)),
        row("diffusers, in turn", result(8, 5, 800)),
        row("ours, in turn", result(7, 5.5, 900)),
    ]
    assert targets(rows).splitlines() == [
        "batch 1: time / core 0.60, at most 0.65: reached",
        "batch 1: memory / core 0.11, at most 0.10: NOT reached",
        "batch 1: × floor 1.09, at most 1.10: reached",
        "batch 1: time / diffusers 0.88, at most 1.05: reached",
    ]


def test_targets_are_for_the_full_sd15_on_a_cpu_only() -> None:
    assert targets([row("ours", result(6, 5, 800), model="tiny")]) == ""
    assert targets([row("ours", result(6, 5, 800), clock="wall")]) == ""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_trainer_runs(repo_root: Path, comfyui: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "workbench.bench.run", "--quick", "--out", out], cwd=repo_root,
        env={**os.environ, "IGL_COMFYUI": str(comfyui)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {r["trainer"]: r for r in json.loads(out.read_text(encoding="utf-8"))}
    assert {name: r["results"][0]["samples"] for name, r in rows.items()} == {
        "core": 4,  # two captions for each of two latents
        "diffusers": 2,
        "ours": 2,
        "diffusers, in turn": 2,
        "ours, in turn": 2,
    }
    attention = [rows[name]["results"][0] for name in ("ours", "diffusers")]
    assert attention[0]["layers"] == attention[1]["layers"]
    assert attention[0]["parameters"] == attention[1]["parameters"]
    assert all(len(r["results"][0]["steps"]) == 1 and r["added_memory"] > 0 for r in rows.values())
    assert all(name in done.stdout for name in rows)


@pytest.mark.slow
def test_the_benchmark_of_a_dataset_encodes_once_and_the_loop_every_time(
    repo_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "workbench.bench.run", "--data", "--pictures", "9", "--out", out],
        cwd=repo_root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {r["case"]: r for r in json.loads(out.read_text(encoding="utf-8"))}
    assert {name: r["encoded"] for name, r in rows.items()} == {
        "ours, first": 9,
        "ours, again": 0,
        "diffusers-style loop": 9,
    }
    assert rows["ours, again"]["disk"] == rows["ours, first"]["disk"] > 9 * 77 * 768 * 4
    assert "| 9 | ours, first | 9 |" in done.stdout
