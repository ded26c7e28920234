"""The judges, judged: figures of Evaluate LoRA on sets of drawn pictures whose truth is exact."""

from __future__ import annotations

import json
import os

import pytest

from in_graph_lora.trainer.evidence.choice import Bounds
from in_graph_lora.trainer.evidence.figures import FIGURES
from workbench.miniature import spoiled, trial, trial_page, trial_sets

RANKS = 0.8
"""Least Spearman's ρ of a figure that is shown."""
SURE = 0.5
"""Least lower end of its interval."""
MOST_HARMLESS = 0.5
"""Most that a figure of drift may say of right pictures that are merely others, of what it says of harm."""


@pytest.fixture(scope="module")
def stored():
    return json.loads(trial.OUT.read_text(encoding="utf-8"))


def test_what_is_shown_followed_the_truth_and_nothing_else_is(stored):
    for figure in FIGURES:
        drawn, drift = stored["drawn"].get(figure.key), stored["harmless"].get(figure.key)
        loras = [stored[trial]["ranked"].get(figure.key) for trial in ("learned", "spoiled")]
        follows = drawn is not None and drawn["rho"] >= RANKS and drawn["interval"][0] > SURE
        follows &= all(found is None or found["interval"][0] > 0 for found in loras)
        follows &= drift is None or drift["harmless"] <= MOST_HARMLESS * drift["spoiled"]
        assert figure.shown == follows, figure.key


def test_the_tables_of_the_page_are_those_of_the_trial(stored):
    """`python -m workbench.miniature.trial` writes them; IGL_WRITE_DOCS=1 does from what is stored."""
    if os.environ.get("IGL_WRITE_DOCS"):
        trial_page.write(stored)
    page = trial_page.PAGE.read_text(encoding="utf-8")
    assert trial_page.written(page, stored) == page
    assert "| not tried |" in next(
        line for line in page.splitlines() if line.startswith("| diversity of the class by LPIPS")
    )


SURELY = {"subject": 0.8, "leak": 0.8, "drift": 0.85, "kid": 0.85, "fid": 0.85, "is": 0.85}
"""Figure → least rank correlation with the truth over the LoRAs that were made to fail."""


@pytest.mark.parametrize("key", SURELY)
def test_the_main_figures_rank_loras_that_were_made_to_fail(stored, key):
    """Ranked again from the figures that are kept."""
    own = trial.ranked(stored["spoiled"]["rows"])[key]
    assert own == stored["spoiled"]["ranked"][key]
    assert own["rho"] >= SURELY[key]
    assert own["interval"][0] > 0.5
    assert own["sets"] == len(spoiled.TITLES) - 1


def test_each_way_of_failing_is_told_from_the_good_one(stored):
    rows = {name: row["figures"] for name, row in stored["spoiled"]["rows"].items()}
    good, bounds = rows["good"], Bounds()

    def passes(row):
        return row["drift"] <= bounds.drift and max(row["copies"], row["pixel_copies"]) <= bounds.copies

    within = {name: row["subject"] for name, row in rows.items() if passes(row) and name != "base"}
    assert max(within, key=lambda name: within[name]) == "good", "the best of all of them"
    assert rows["too-many"]["subject"] > good["subject"], "and not for want of likeness elsewhere"
    assert not passes(rows["too-many"])
    assert not passes(rows["rate"])
    for name in ("too-few", "noise", "swapped"):
        assert rows[name]["subject"] < good["subject"] / 2
    assert rows["no-class"]["leak"] > 0 > good["leak"]


def test_the_held_out_loss_does_not_rank_what_was_learned(stored):
    """It finds what was learned by heart worse than nothing learned, and captions that were swapped nearly
    as good as right ones: it decides only where no judge is connected."""
    rows = {name: row["figures"]["loss"] for name, row in stored["spoiled"]["rows"].items()}
    assert rows["too-many"] > rows["base"] > rows["swapped"] > rows["good"]
    assert rows["good"] < rows["half"] < rows["too-few"], "yet it falls in a good run"
    assert stored["spoiled"]["ranked"]["loss"]["interval"][0] < 0


def test_learned_by_heart_is_told_from_learned(stored):
    """Five pictures, of the LoRAs of docs/learning.md."""
    copies = {name: row["figures"]["copies"] for name, row in stored["learned"]["rows"].items()}
    assert max(copies, key=lambda name: copies[name]) == "ours-5"
    assert copies["ours-15"] == copies["ours-25"] == copies["base"] == 0


@pytest.mark.parametrize("truth", ["subject", "leak", "copies", "drift"])
def test_the_main_figures_rank_drawn_sets_as_they_were_spoiled(truth):
    sets = [trial_sets.drawn(truth, share, seed=9) for share in (0.0, 0.5, 1.0)]
    values = [trial.figures(pictures, trial_sets.drawn_base(), fid=False)[truth] for pictures, _ in sets]
    truths = [value for _, value in sets]
    ranked = [value for _, value in sorted(zip(truths, values, strict=True))]
    assert ranked == sorted(ranked)
    assert ranked[0] < ranked[1] < ranked[2]


def test_pictures_of_the_subject_that_were_never_trained_on_are_no_copies():
    pictures, _ = trial_sets.drawn("copies", 0.0, seed=9)
    assert trial.figures(pictures, trial_sets.drawn_base(), fid=False)["copies"] <= 0.2
