"""The pure part of the runs' list and of the comparison, in Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no Node.js")


def js(repo_root: Path, module: str, expression: str) -> Any:
    """The value of an expression in which `m` is the module."""
    url = (repo_root / "web" / module).as_uri()
    script = f"import * as m from {json.dumps(url)}; console.log(JSON.stringify({expression}));"
    command = [str(NODE), "--input-type=module", "--eval", script]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_bytes_and_titles_are_short(repo_root):
    said = js(repo_root, "runs_data.mjs", "[0, 999, 1536, 5e6, 123456789, 3e12].map(m.bytes)")
    assert said == ["0 B", "999 B", "1.5 KB", "4.8 MB", "118 MB", "2.7 TB"]
    titles = js(repo_root, "runs_data.mjs", "['a b/20261124-120159-2', 'a/other'].map(m.titleOf)")
    assert titles == [{"name": "a b", "started": "2026-11-24 12:01 (2)"}, {"name": "a", "started": "other"}]


def test_jobs_are_counted_and_say_what_went_wrong(repo_root):
    jobs = """[{name: "a", state: "waiting", step: 0, steps: 0, loss: null, error: ""},
        {name: "b/c", state: "failed", step: 3, steps: 9, loss: 0.1, error: "out of memory; at\\nline 3"}]"""
    assert js(repo_root, "runs_data.mjs", f"m.jobsTitle({jobs})") == "Jobs: 1 failed, 1 waiting"
    assert js(repo_root, "runs_data.mjs", f"{jobs}.map(m.jobLine)") == [
        "a · waiting",
        "b/c · failed · step 3/9 · out of memory; at",
    ]


def test_only_settings_that_differ_are_listed(repo_root):
    configs = '[{a: {x: 1, y: [1, 2]}, b: "s"}, {a: {x: 2, y: [1, 2]}, c: true}]'
    assert js(repo_root, "runs_data.mjs", f"m.differences({configs})") == [
        ["a.x", ["1", "2"]],
        ["b", ["s", ""]],
        ["c", ["", "true"]],
    ]


def test_curves_share_one_scale_and_keep_gaps(repo_root):
    series = "[[[1, 4], [2, null], [3, 2]], [[1, 3], [5, 0]], []]"
    drawn = js(repo_root, "runs_data.mjs", f"m.curves({series}, 100, 50, [0, 0, 0], 5)")
    assert drawn["paths"] == ["M0.0 5.0M50.0 25.0", "M0.0 15.0L100.0 45.0", ""]
    assert (drawn["low"], drawn["high"], drawn["last"]) == (0, 4, 5)
    flat = js(repo_root, "runs_data.mjs", "m.curves([[[1, 1], [2, 1]], [[1, null]]], 100, 50)")
    assert "NaN" not in json.dumps(flat)
    assert js(repo_root, "runs_data.mjs", "m.curves([[[1, null]]], 9, 9).paths") == [""]


def test_the_lowest_held_out_loss_is_found_among_gaps(repo_root):
    steps = "[{step: 1, held_out: null}, {step: 2, held_out: 0.5}, {step: 3, held_out: 0.25}, {step: 4}]"
    assert js(repo_root, "runs_data.mjs", f"m.bestOf({{checkpoints: {steps}}}).step") == 3
    judged = js(repo_root, "runs_data.mjs", f"m.bestOf({{checkpoints: {steps}, best: 2}}).step")
    assert judged == 2, "what the judge found best comes first"
    assert js(repo_root, "runs_data.mjs", "m.bestOf({checkpoints: [{step: 1}]})") is None


def test_names_are_escaped_in_addresses(repo_root):
    assert js(repo_root, "runs_data.mjs", "m.pictureOf('玩具 &/1', 'a.png')") == (
        "/view?filename=a.png&subfolder=in-graph-lora%2F%E7%8E%A9%E5%85%B7+%26%2F1%2Fpreviews&type=output"
    )


def test_pictures_fall_into_rows_at_strength_zero(repo_root):
    pictures = "[0, 0.5, 1, 0, 0.5, 1].map((strength) => ({strength}))"
    rows = js(repo_root, "comparison.mjs", f"m.rowsOf({pictures}).map((r) => r.map((p) => p.strength))")
    assert rows == [[0, 0.5, 1], [0, 0.5, 1]]
    assert js(repo_root, "comparison.mjs", "m.rowsOf([])") == []
