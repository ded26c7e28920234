"""What the page may ask of a training that goes on, and what ComfyUI's cache is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from in_graph_lora.trainer.host.active import active, find, go_on, pause, paused, record_stop, stops


def test_a_training_is_found_by_its_node_and_prompt_as_long_as_it_goes_on() -> None:
    with active("7", "mine") as run:
        assert find("7") is run
        assert find("7", "mine") is run
        assert find("7", "another prompt's") is None
    assert find("7") is None


def test_a_stop_counts_for_its_name_and_for_a_name_that_is_not_known_yet() -> None:
    mine, all_names = stops("a name of this test"), stops(None)
    record_stop(" a name of this test ")
    assert stops("a name of this test") == mine + 1
    assert stops("another name of this test") == 0
    assert stops(None) == all_names + 1


def test_a_paused_run_gives_what_it_has_until_it_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "paused in this test" / "1"
    result = cast(Any, SimpleNamespace(run=run))
    assert not go_on(run)
    pause(result)
    assert paused(run) is result
    before = stops("paused in this test")
    assert go_on(run)
    assert paused(run) is None
    assert stops("paused in this test") == before + 1, "else ComfyUI would answer with what it kept"
