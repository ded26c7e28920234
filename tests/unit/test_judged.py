"""Which step of a run a judge finds best, from what the run has written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from in_graph_lora.trainer.config import BY_JUDGE, PreviewConfig, TrainConfig, ValidationConfig
from in_graph_lora.trainer.events import Judged
from in_graph_lora.trainer.evidence.choice import Bounds
from in_graph_lora.trainer.runs.folder import RunFolder
from in_graph_lora.trainer.runs.judged import best_judged, best_of, shots_of
from in_graph_lora.trainer.runs.record import Record, seen_by

CONFIG = TrainConfig(
    preview=PreviewConfig(prompts=("a x toy", "a toy"), unrelated_prompts=("a lake",), seed=2**64 - 2),
    validation=ValidationConfig(decides=BY_JUDGE, judge="j 0", max_drift=0.4),
)
BY = {"seen_by": seen_by(CONFIG)}
FOUND = {
    0: {"subject": 0.9, "drift": 0.0},
    10: {"subject": 0.3, "drift": 0.1, "copies": 0.0},
    20: {"subject": 0.5, "drift": 0.3, "copies": 0.2},
    30: {"subject": 0.7, "drift": 0.45, "copies": 0.2},
    40: {"subject": 0.8, "drift": 0.2, "copies": 0.5, "of a later version": 1.0},
}


def folder(path: Path, config: TrainConfig = CONFIG) -> RunFolder:
    made = RunFolder.create(path, config, Record(key=""))
    for step, figures in FOUND.items():
        made.log.add(Judged(step=step, figures=figures, best=False, seen_by=seen_by(CONFIG)))
    made.log.add(Judged(step=20, figures={"subject": 1.0}, best=True, seen_by="another judge"))
    return made


def test_the_most_faithful_step_within_bounds_is_best_and_the_untouched_model_never():
    assert best_of(FOUND, Bounds())[0] == 30
    assert best_of(FOUND, Bounds(drift=0.4))[0] == 20
    assert best_of(FOUND, Bounds(copies=0.5))[0] == 40
    step, choice = best_of(FOUND, Bounds(drift=0.05))
    assert (step, "none stays within bounds" in choice.reason) == (10, True)
    assert best_of({0: FOUND[0]}, Bounds())[0] is None


def test_a_past_run_knows_its_best_step_with_its_own_bounds(tmp_path):
    run = folder(tmp_path)
    assert best_judged(run, (10, 20, 30, 40)) == 20
    assert best_judged(run, (10, 30, 40)) == 10, "of the steps whose LoRA is there"
    assert best_judged(folder(tmp_path, TrainConfig()), (10, 20)) is None, "no judge decided"
    (run.path / "config.json").write_text('{"validation": 3}', encoding="utf-8")
    assert best_judged(run, (10, 20)) is None


@pytest.mark.parametrize("figures", [None, [], {"subject": "high"}, {"subject": True}, {"subject": None}])
def test_a_line_of_the_log_that_is_not_ours_is_left_out(tmp_path, figures):
    run = folder(tmp_path)
    with run.log.path.open("a", encoding="utf-8") as log:
        log.write(json.dumps({"event": "Judged", "step": 20, "figures": figures, "best": True, **BY}) + "\n")
        log.write(json.dumps({"event": "Judged", "figures": {"subject": 1.0}, **BY}) + "\n")
    assert run.log.judged(seen_by(CONFIG)) == FOUND


def test_a_line_without_the_trigger_is_of_the_class_and_seeds_count_up_as_the_previews_do():
    def kinds(trigger: str) -> list[str]:
        return [shot.kind for shot in shots_of(CONFIG, trigger)]

    assert kinds("x") == ["trigger", "class", "unrelated"]
    assert kinds("") == ["trigger", "trigger", "unrelated"], "no trigger is known"
    assert kinds("x toy") == ["trigger", "class", "unrelated"]
    assert [shot.seed for shot in shots_of(CONFIG, "x")] == [2**64 - 2, 2**64 - 1, 0]
