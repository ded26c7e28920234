"""The list of runs: what is in it, what it says, and what is never touched through it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from in_graph_lora.trainer.config import OptimizerConfig
from in_graph_lora.trainer.errors import StorageError
from in_graph_lora.trainer.runs.in_use import in_use, is_in_use
from in_graph_lora.trainer.runs.listing import CURVE_POINTS, Runs
from in_graph_lora.trainer.runs.past import load_past_run

from ..past_runs import write_report, write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "in-graph-lora"


def everything(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_runs_are_listed_newest_first_and_the_empty_ones_only_where_asked(root):
    write_run(root, "old", age=100)
    write_run(root, "new", age=10)
    write_run(root, "empty", every=0)
    runs = Runs(root)
    assert runs.ids() == ["empty/20261124-120000", "new/20261124-120000", "old/20261124-120000"]
    assert runs.names() == runs.ids()[1:]
    assert [r["state"] for r in runs.page(0, 10)["runs"]] == ["empty", "finished", "finished"]
    assert [r["id"] for r in runs.page(1, 1)["runs"]] == ["new/20261124-120000"]
    assert runs.page(0, 1, with_lora=True)["total"] == 2


def test_a_root_that_is_not_there_has_no_runs(tmp_path):
    assert Runs(tmp_path / "none").page(0, 10) == {"runs": [], "total": 0, "offset": 0}


def test_a_run_says_its_steps_pictures_and_bytes(root):
    folder = write_run(root, steps=40, every=10, finished=False)
    (said,) = Runs(root).page(0, 1)["runs"]
    assert (said["state"], said["step"], said["steps"], said["lora"]) == ("stopped", 40, 40, None)
    assert said["picture"] == "step_000040_1.png"
    assert said["bytes"] == sum(p.stat().st_size for p in folder.path.rglob("*") if p.is_file())


def test_the_detail_has_curve_and_a_picture_of_each_prompt_at_each_step(root):
    write_run(root, steps=40, every=10)
    said = Runs(root).detail("toy/20261124-120000")
    assert [c["step"] for c in said["checkpoints"]] == [10, 20, 30, 40]
    assert said["checkpoints"][1]["pictures"] == ["step_000020_1.png", "step_000020_2.png"]
    assert said["before"] == ["step_000000_1.png", "step_000000_2.png"]
    assert [s for s, _ in said["curve"]["loss"]] == list(range(1, 41))
    assert said["checkpoints"][0]["held_out"] == dict(said["curve"]["held_out"])[10]
    assert said["prompts"] == ["a toy", "一个玩具"]


def test_a_long_curve_has_few_points_its_ends_and_no_nan(root):
    folder = write_run(root, steps=2001, every=2000, pictures=False)
    text = folder.log.path.read_text().splitlines()
    text[4] = '{"event": "StepDone", "step": 5, "loss": null}'
    folder.log.path.write_text("\n".join(text) + "\n")
    curve = Runs(root).detail("toy/20261124-120000")["curve"]["loss"]
    assert len(curve) <= CURVE_POINTS
    assert curve[-1][0] == 2001
    assert all(isinstance(loss, float) for _, loss in curve)


def test_a_curve_that_goes_on_is_read_again(root):
    folder = write_run(root, steps=10)
    assert Runs(root).detail("toy/20261124-120000")["curve"]["loss"][-1][0] == 10
    with folder.log.path.open("a") as f:
        f.write('{"event": "StepDone", "step": 11, "loss": 0.5}\n')
    assert Runs(root).detail("toy/20261124-120000")["curve"]["loss"][-1] == (11, 0.5)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"preview": 3, "steps": "many", "epochs": []}', "null"])
def test_a_damaged_config_leaves_the_run_in_the_list(root, content):
    folder = write_run(root)
    (folder.path / "config.json").write_text(content)
    (folder.path / "run.json").write_text(content)
    said = Runs(root).detail("toy/20261124-120000")
    assert (said["state"], said["prompts"], said["steps"]) == ("stopped", [], None)


@pytest.mark.parametrize(
    "run",
    ["", "/", "..", "../..", "toy", "toy/", "toy/..", "toy/../toy/20261124-120000", "\0", "a" * 9999,
     "./toy/20261124-120000", "toy//20261124-120000", "toy\\20261124-120000", "/toy/20261124-120000",
     "toy/20261124-120000/checkpoints"],
)  # fmt: skip
def test_what_is_no_id_is_refused_in_one_sentence_and_changes_nothing(root, run):
    write_run(root)
    before = everything(root.parent)
    for act in (Runs(root).detail, Runs(root).delete, Runs(root).folder):
        with pytest.raises(StorageError, match=r"^there is no run .*; refresh the list of runs$"):
            act(run)
    assert everything(root.parent) == before


def test_a_run_is_deleted_whole_and_nothing_else(root):
    write_run(root, run="20261124-120000")
    write_run(root, run="20261124-130000")
    lora = root.parent / "loras" / "toy.safetensors"
    lora.parent.mkdir()
    lora.touch()
    Runs(root).delete("toy/20261124-120000")
    assert Runs(root).ids() == ["toy/20261124-130000"]
    assert lora.exists()
    Runs(root).delete("toy/20261124-130000")
    assert everything(root) == []


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_nothing_is_read_or_deleted_through_a_link(root, tmp_path):
    outside = write_run(tmp_path / "elsewhere", "toy").path
    write_run(root, "real")
    (root / "linked").symlink_to(outside.parent)
    (root / "real" / "linked").symlink_to(outside)
    run = root / "real" / "20261124-120000"
    (run / "previews" / "step_000099_1.png").symlink_to(outside / "previews" / "step_000010_1.png")
    (run / "more").symlink_to(outside)
    before = everything(outside)
    assert Runs(root).ids() == ["real/20261124-120000"]
    assert Runs(root).page(0, 1)["runs"][0]["picture"] == "step_000040_1.png"
    Runs(root).delete("real/20261124-120000")
    assert everything(outside) == before


def test_a_run_that_is_trained_is_not_deleted(root):
    folder = write_run(root)
    with in_use(folder.path):
        assert Runs(root).page(0, 1)["runs"][0]["state"] == "training"
        with pytest.raises(StorageError, match="is being trained; stop it first"):
            Runs(root).delete("toy/20261124-120000")
    assert not is_in_use(folder.path)
    Runs(root).delete("toy/20261124-120000")


def test_another_process_that_trains_counts_as_long_as_it_lives(root):
    folder = write_run(root)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        time.sleep(0.05)
        (folder.path / "training.pid").write_text(str(other.pid))
        assert is_in_use(folder.path)
    finally:
        other.kill()
        other.wait()
    assert not is_in_use(folder.path)
    for left in (str(os.getpid()), "", "x", "9" * 400):
        (folder.path / "training.pid").write_text(left)
        assert not is_in_use(folder.path), "what a killed process left"


def test_500_runs_are_listed_in_a_moment(root):
    first = write_run(root, "run0", run="r000", steps=10, pictures=False)
    for i in range(1, 500):
        target = root / f"run{i % 20}" / f"r{i:03d}"
        for path in ("run.json", "config.json", "events.jsonl", "checkpoints/step_000010.safetensors"):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(first.path / path, target / path)
    start = time.process_time()
    assert len(Runs(root).page(250, 50)["runs"]) == 50
    seconds = time.process_time() - start
    assert seconds < 1, f"{seconds:.2f} s"


def test_load_run_says_which_file_it_read(root):
    folder = write_run(root, optimizer=OptimizerConfig(learning_rate=1e-3))
    assert load_past_run(folder, 20).path == folder.checkpoints / "step_000020.safetensors"


def test_the_best_step_is_that_of_the_newest_report_whose_lora_is_there(root):
    run = write_run(root)
    runs = Runs(root)
    (name,) = runs.ids()

    def best() -> tuple[int, bool]:
        detail = runs.detail(name)
        assert load_past_run(run, -1).step == (detail["best"] or 40), "without a report the lowest loss"
        return detail["best"], detail["evaluated"]

    assert best() == (None, False)
    older = write_report(run, 20, evaluation="1")
    os.utime(older, (1, 1))
    assert best() == (20, True)
    newer = write_report(run, 30, evaluation="2")
    assert best() == (30, True)
    for other in (
        write_report(run, 35, evaluation="3"),
        write_report(run, 10, name="another", evaluation="4"),
    ):
        assert best() == (30, True), "of a step that is gone, or of another LoRA"
        other.unlink()
    for broken in (
        "",
        "[]",
        '{"columns": [], "best": {"column": 3}}',
        '{"columns": 1, "best": {"column": null}}',
    ):
        newer.write_text(broken, encoding="utf-8")
        assert best() == (20, True)
