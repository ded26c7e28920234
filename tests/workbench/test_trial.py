"""The judges, judged: figures of Evaluate LoRA on sets of drawn pictures whose truth is exact."""

from __future__ import annotations

import json

import pytest

from in_graph_lora.trainer.evidence.figures import FIGURES
from workbench.miniature import trial

RANKS = 0.8
"""Least Spearman's ρ of a figure that is shown."""
SURE = 0.5
"""Least lower end of its interval."""
MOST_HARMLESS = 0.5
"""Most that a figure of drift may say of right pictures that are merely others, of what it says of harm."""
UNTRIED = ("loss",)
"""It is over held-out pictures, and needs no judge."""


@pytest.fixture(scope="module")
def stored():
    return json.loads(trial.OUT.read_text(encoding="utf-8"))


def test_what_is_shown_followed_the_truth_and_nothing_else_is(stored):
    for figure in FIGURES:
        if figure.key not in UNTRIED:
            drawn, learned = stored["drawn"][figure.key], stored["learned"]["ranked"].get(figure.key)
            follows = drawn["rho"] >= RANKS and drawn["interval"][0] > SURE
            follows &= learned is None or learned["interval"][0] > 0
            drift = stored["harmless"].get(figure.key)
            follows &= drift is None or drift["harmless"] <= MOST_HARMLESS * drift["spoiled"]
            assert figure.shown == follows, figure.key


def test_learned_by_heart_is_told_from_learned(stored):
    """Five pictures, of the LoRAs of docs/learning.md."""
    copies = {name: row["figures"]["copies"] for name, row in stored["learned"]["rows"].items()}
    assert max(copies, key=lambda name: copies[name]) == "ours-5"
    assert copies["ours-15"] == copies["ours-25"] == copies["base"] == 0


@pytest.mark.parametrize("truth", ["subject", "leak", "copies", "drift"])
def test_the_main_figures_rank_drawn_sets_as_they_were_spoiled(truth):
    sets = [trial.drawn(truth, share, seed=9) for share in (0.0, 0.5, 1.0)]
    values = [trial.figures(pictures, trial.drawn_base(), fid=False)[truth] for pictures, _ in sets]
    truths = [value for _, value in sets]
    ranked = [value for _, value in sorted(zip(truths, values, strict=True))]
    assert ranked == sorted(ranked)
    assert ranked[0] < ranked[1] < ranked[2]


def test_pictures_of_the_subject_that_were_never_trained_on_are_no_copies():
    pictures, _ = trial.drawn("copies", 0.0, seed=9)
    assert trial.figures(pictures, trial.drawn_base(), fid=False)["copies"] <= 0.2
