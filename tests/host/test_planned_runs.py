"""Runs are planned before anything is encoded, and go on when memory is short all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from in_graph_lora.nodes.plan_training import PlanTraining
from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.data.store import usage
from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.events import Notice, Phase, Planned, RunStarted, StepDone
from in_graph_lora.trainer.host import planning
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.runs.result import Result

from .loaded import Loaded, identities, weight_hash, write_pictures

pytestmark = pytest.mark.usefixtures("output")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64)] * 3)


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    planning._measured.clear()


def run(
    loaded: Loaded, pictures: Path, emit: Callable[[Any], None] = lambda event: None, **sections: Any
) -> Result:
    config = TrainConfig(
        **{
            "name": "test",
            "steps": 4,
            "optimizer": OptimizerConfig(learning_rate=1e-3),
            "data": DataConfig(resolution=64),
            **sections,
        }
    )
    dataset = scan_folder(pictures, resolution=64)
    with torch.inference_mode():
        return train_on_loaded(loaded.model, loaded.clip, loaded.vae, dataset, config, emit, new_run=True)


def test_the_plan_is_said_before_a_picture_is_encoded_and_kept_with_the_run(loaded, pictures):
    events: list[Any] = []
    result = run(loaded, pictures, events.append)
    kinds = [(type(e), getattr(e, "name", "")) for e in events]
    assert kinds.index((Planned, "")) < kinds.index((Phase, "encoding pictures"))
    (planned,) = (e.line for e in events if isinstance(e, Planned))
    assert "1 × 64×64 a pass" in planned
    assert "none needed" in planned, "the tiny model fits here"
    kept = json.loads((result.run / "plan.json").read_text())
    assert kept["chosen"]["memory"] == json.loads((result.run / "config.json").read_text())["memory"]
    assert kept["chosen"]["weights"] == pytest.approx(loaded.model.model_size(), rel=1e-3)
    assert "| 24 GB | yes |" in (result.run / "plan.md").read_text()
    again: list[Any] = []
    run(loaded, pictures, again.append, name="again")
    assert not [e for e in again if isinstance(e, Phase) and e.name == "trying out one step"], "it is known"


def test_trying_out_a_step_changes_neither_the_run_nor_the_model(loaded, pictures, monkeypatch):
    before = weight_hash(loaded.model.model), identities(loaded.model.model)
    tried = run(loaded, pictures)
    assert (weight_hash(loaded.model.model), identities(loaded.model.model)) == before
    monkeypatch.setattr(planning, "measure", lambda *a, **k: pytest.fail("it is known"))
    known = run(loaded, pictures, name="known")
    assert known.losses == tried.losses
    assert all(torch.equal(known.lora[key], tensor) for key, tensor in tried.lora.items())


FULL = torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
FULL_ON_APPLE = RuntimeError("MPS backend out of memory (MPS allocated: 9.07 GB, max allowed: 9.07 GB)")


@contextmanager
def short_of_memory(
    loaded: Loaded, failing: set[int], error: Exception = FULL
) -> Iterator[tuple[list[Any], Callable[[Any], None]]]:
    """Passes with these numbers, counted after the start of the run, run out of memory."""
    events: list[Any] = []
    passes = 0

    def count(module: torch.nn.Module, args: Any) -> None:
        nonlocal passes
        if any(isinstance(e, RunStarted) for e in events):
            passes += 1
            if passes in failing:
                raise error

    hook = loaded.model.model.diffusion_model.register_forward_pre_hook(count)
    try:
        yield events, events.append
    finally:
        hook.remove()


@pytest.mark.parametrize("error", [FULL, FULL_ON_APPLE], ids=["cuda", "mps"])
def test_out_of_memory_costs_nothing_the_run_goes_on_with_leaner_levers(loaded, pictures, monkeypatch, error):
    straight = run(loaded, pictures)
    with short_of_memory(loaded, {3}, error) as (events, emit):
        # ComfyUI's own, which knows all kinds of devices.
        monkeypatch.setattr(planning.mm, "soft_empty_cache", lambda: events.append("emptied"))
        result = run(loaded, pictures, emit, name="short")
    assert [e.step for e in events if isinstance(e, StepDone)] == [1, 2, 3, 4]
    told = [e.message for e in events if isinstance(e, Notice) and e.message.startswith("out of memory")]
    (message,) = told
    assert "at step 3; going on with checkpointing" in message
    after = [e for e in events[[*map(str, events)].index(str(Notice(message=message))) :]]
    assert "emptied" in after[: next(i for i, e in enumerate(after) if isinstance(e, StepDone))]
    assert result.losses == pytest.approx(straight.losses, rel=1e-6)
    for key, tensor in straight.lora.items():
        torch.testing.assert_close(result.lora[key], tensor, rtol=1e-5, atol=1e-7)
    config = json.loads((result.run / "config.json").read_text())
    assert config["memory"]["checkpointing"] == 1, "what it ended with"


def test_after_three_times_the_error_is_raised_and_the_work_is_kept(loaded, pictures, output):
    before = weight_hash(loaded.model.model)
    with (
        short_of_memory(loaded, set(range(3, 50))) as (events, emit),
        pytest.raises(torch.OutOfMemoryError, match="lower the resolution"),
    ):
        run(loaded, pictures, emit)
    assert len([e for e in events if isinstance(e, Notice) and "out of memory at" in e.message]) <= 3
    assert list(output.rglob("step_000002.safetensors"))
    assert weight_hash(loaded.model.model) == before


def test_levers_of_the_user_stop_at_out_of_memory(loaded, pictures):
    with (
        short_of_memory(loaded, {2}) as (_, emit),
        pytest.raises(torch.OutOfMemoryError, match="set checkpointing to 1"),
    ):
        run(loaded, pictures, emit, memory=MemoryConfig(fit="manual"))


def test_the_disk_that_the_plan_names_has_the_cache_of_this_dataset(loaded, output, tmp_path):
    pictures = write_pictures(tmp_path / "pictures", [(64, 64), (128, 32), (64, 64)])
    result = run(loaded, pictures, steps=1, objective=ObjectiveConfig(caption_dropout=0.5))
    planned = json.loads((result.run / "plan.json").read_text())["disk"]
    _, kept = usage(output / "in-graph-lora" / "cache")
    assert planned["cache"] == pytest.approx(kept, rel=0.03)
    assert planned["needed"] > planned["cache"]


def test_where_not_one_block_fits_the_leanest_levers_are_taken_and_said(loaded, pictures, monkeypatch):
    def exhausted(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    monkeypatch.setattr(planning, "measure", exhausted)
    events: list[Any] = []
    result = run(loaded, pictures, events.append, steps=1)
    assert [e for e in events if isinstance(e, Notice) and "the leanest levers are taken" in e.message]
    assert json.loads((result.run / "config.json").read_text())["memory"]["streamed"] == 1


def test_a_step_that_cannot_be_tried_out_is_no_reason_not_to_train_and_is_said(loaded, pictures, monkeypatch):
    def refused(*args: Any, **kwargs: Any) -> None:
        raise ModelError("Block overwrites values in place")

    monkeypatch.setattr(planning, "measure", refused)
    events: list[Any] = []
    result = run(loaded, pictures, events.append, steps=1)
    assert len(result.losses) == 1
    assert [e for e in events if isinstance(e, Notice) and "no plan, for one step could not be" in e.message]
    assert not (result.run / "plan.json").exists()


def test_a_run_that_goes_on_from_a_lora_is_planned_with_its_ranks(loaded, pictures):
    # Folders of other tests are listed too, so the name is of this test alone.
    first = run(loaded, pictures, steps=1, adapter=AdapterConfig(rank=8), name="rank-eight")
    name = first.path.name
    second = run(loaded, pictures, steps=1, adapter=AdapterConfig(rank=2, start_from=name), name="second")
    plans = [json.loads((r.run / "plan.json").read_text())["chosen"] for r in (first, second)]
    assert plans[0]["adapters"] == plans[1]["adapters"] > 0


def test_a_machine_that_is_too_small_is_told_before_the_start(loaded, pictures, monkeypatch):
    monkeypatch.setattr(planning.mm, "get_free_memory", lambda *a: -loaded.model.model_size() + 1000)
    events: list[Any] = []
    run(loaded, pictures, events.append, steps=1)
    assert [
        e for e in events if isinstance(e, Notice) and "may run out of memory; lower batch_size" in e.message
    ]


def test_plan_training_says_it_and_trains_nothing(loaded, pictures, output):
    before = sorted(output.rglob("*"))
    dataset = scan_folder(pictures, resolution=64)
    numbers = {"steps": 4, "learning_rate": 1e-3, "rank": 4, "alpha": 0.0, "batch_size": 2, "train_seed": 0}
    with torch.inference_mode():
        out = PlanTraining.PREPARE_CLASS_CLONE(None).execute(
            loaded.model, loaded.clip, loaded.vae, dataset, name="plan", **numbers
        )
    text, table = out.args
    assert "2 × 64×64 a pass" in text
    assert [line.split("|")[2].strip() for line in table.splitlines()[2:]] == ["yes"] * 4
    assert sorted(output.rglob("*")) == before
