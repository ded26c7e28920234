"""What the page may ask of a training that goes on."""

from __future__ import annotations

import json

from in_graph_lora.trainer.host.active import MAX_HISTORY, ActiveRun, active, find, record_stop, stops


def test_what_is_new_since_a_step_is_sent_and_nothing_else() -> None:
    run = ActiveRun()
    for step in (0, 1, 2, 2, 5):
        run.add({"step": step, "loss": 0.5})
    assert [e["step"] for e in json.loads(run.history())] == [0, 1, 2, 2, 5]
    assert [e["step"] for e in json.loads(run.history(since=2))] == [5]
    assert json.loads(run.history(since=5)) == []


def test_a_long_run_keeps_its_shape_in_few_entries() -> None:
    run = ActiveRun()
    for step in range(20 * MAX_HISTORY):
        run.add({"step": step})
    kept = [e["step"] for e in json.loads(run.history())]
    assert len(kept) <= MAX_HISTORY
    assert kept[-1] == 20 * MAX_HISTORY - 1
    assert kept == sorted(kept)
    assert kept[0] < 100


def test_a_training_is_found_by_its_node_as_long_as_it_goes_on() -> None:
    with active("7") as run:
        assert find("7") is run
    assert find("7") is None


def test_a_stop_counts_for_its_name_and_for_a_name_that_is_not_known_yet() -> None:
    mine, all_names = stops("a name of this test"), stops(None)
    record_stop(" a name of this test ")
    assert stops("a name of this test") == mine + 1
    assert stops("another name of this test") == 0
    assert stops(None) == all_names + 1
