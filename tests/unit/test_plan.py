"""What fits and what is fastest, computed from a step that was tried out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from in_graph_lora.trainer.config import MemoryConfig
from in_graph_lora.trainer.memory.fallback import MOST, Fallback
from in_graph_lora.trainer.memory.plan import Measured, Visit, choose, leanest, leanest_levers, need
from in_graph_lora.trainer.memory.report import Plan

GB = 2**30
AUTO, MANUAL = MemoryConfig(), MemoryConfig(fit="manual")
PRECISIONS = ("as loaded", "fp8", "int8")


def measured(**changes: object) -> Measured:
    """Ten blocks of 1 GB, 0.5 GB kept by each, a tenth of that when checkpointed."""
    visits = [
        Visit(
            block=i,
            gap=i * GB // 20,
            before=i * GB // 20,
            held=GB // 20,
            kept=GB // 2,
            forward_peak=GB // 2,
            backward_peak=6 * GB // 10,
            inputs=GB // 20,
            gradients=0,
            forward=0.1,
            backward=0.2,
        )
        for i in range(10)
    ]
    base = Measured(
        visits=tuple(visits),
        blocks=(GB,) * 10,
        quantised=(GB // 2,) * 10,
        largest_layer=GB // 10,
        rest=GB // 10,
        adapters=GB // 100,
        optimizer=GB // 50,
        update_peak=GB // 100,
        tail=GB // 2,
        pass_peak=9 * GB // 20 + 6 * GB // 10,
        outside_seconds=0.1,
        copying=1 / (25 * GB),
        dequantising=1 / (500 * GB),
        passes=1.0,
        cached=GB // 10,
        pinned=GB // 4,
        on_cpu=False,
    )
    return replace(base, **changes)


def chosen(
    free: float, found: Measured | None = None, precisions: tuple[str, ...] = ("as loaded",)
) -> MemoryConfig:
    n = choose(found or measured(), AUTO, int(free * GB), precisions)
    assert n is not None
    assert n.with_reserve <= free * GB
    return n.memory


def test_where_everything_fits_nothing_is_traded():
    assert chosen(24) == AUTO


def test_activations_go_before_weights_and_no_more_than_needed():
    assert 0 < chosen(15).streamed <= 0.3
    assert need(measured(), chosen(15)).seconds < need(measured(), chosen(12)).seconds
    slow = measured(copying=1 / GB)
    assert chosen(15, slow) == replace(AUTO, checkpointing=3)
    assert chosen(12, slow) == replace(AUTO, checkpointing=1)


def test_blocks_leave_the_card_as_far_as_needed():
    for free in (10, 8, 6, 4):
        levers = chosen(free)
        assert levers.streamed > 0
        less = replace(levers, streamed=round(levers.streamed - 0.1, 2), offload_activations=False)
        assert need(measured(), less).with_reserve > free * GB, "a tenth less would not fit"


def test_copies_hide_behind_what_computes_and_then_they_count():
    half = replace(AUTO, streamed=0.5, checkpointing=1)
    hidden = need(measured(), half).seconds
    assert hidden == pytest.approx(need(measured(), replace(AUTO, checkpointing=1)).seconds, rel=0.02)
    slow = measured(copying=1 / (2 * GB))
    assert need(slow, half).seconds == pytest.approx(2 * 5 / 2)


def test_another_base_precision_is_chosen_only_where_it_is_worth_it():
    assert chosen(8, precisions=PRECISIONS).base_precision == "as loaded", "copies hide, so nothing is won"
    slow = measured(copying=1 / (2 * GB))
    assert chosen(8, slow, PRECISIONS).base_precision == "fp8"
    assert chosen(8, slow).base_precision == "as loaded"


def test_nothing_fits_into_nothing_and_the_leanest_levers_are_known():
    assert choose(measured(), AUTO, GB, ("as loaded",)) is None
    n = leanest(measured(), AUTO, ("as loaded",))
    assert n.memory.checkpointing == 1
    assert n.memory.streamed == 1
    assert n.ring == 2 * GB


def test_offloaded_inputs_count_for_the_host_and_not_for_the_card():
    kept, away = (
        need(measured(), replace(leanest_levers(AUTO), offload_activations=x)) for x in (False, True)
    )
    assert kept.device - away.device == pytest.approx(8 * GB / 20, rel=1e-6)
    assert away.host - kept.host == pytest.approx(10 * GB / 20, rel=1e-6)


def test_where_device_and_host_are_one_nothing_is_won_by_moving_or_quantising():
    one = measured(on_cpu=True)
    least = need(one, replace(AUTO, checkpointing=1)).device
    for levers in ({"streamed": 1.0}, {"base_precision": "fp8"}, {"offload_activations": True}):
        assert need(one, replace(AUTO, checkpointing=1, **levers)).device >= least


@pytest.mark.parametrize("found", [measured(), None])
def test_out_of_memory_goes_three_steps_down_to_the_leanest_and_not_further(found):
    fallback, memory, sizes = Fallback(found), AUTO, []
    for _ in range(MOST):
        memory = fallback.next(memory)
        assert memory is not None
        assert memory.base_precision == "as loaded"
        sizes.append(need(measured(), memory).device)
    assert sizes == sorted(sizes, reverse=True)
    assert memory == leanest_levers(AUTO)
    assert fallback.next(memory) is None
    assert Fallback(found).next(memory) is None, "nothing is leaner"


def test_levers_of_the_user_are_not_changed():
    assert Fallback(measured()).next(MANUAL) is None


def plan(free: float, host: float = 64, memory: MemoryConfig = MANUAL) -> Plan:
    return Plan(
        batch="2 × 1024×1024",
        chosen=need(measured(), memory),
        measured=measured(),
        device_free=int(free * GB),
        host_free=int(host * GB),
        precisions=("as loaded",),
    )


def test_a_plan_says_in_words_what_does_not_fit():
    assert plan(24).warnings == []
    (no_room,) = plan(8).warnings
    assert "lower batch_size" in no_room
    (swaps,) = plan(24, host=0.01).warnings
    assert "may swap" in swaps
    assert [w.split()[-1] for w in plan(8, host=0.01).warnings] == ["Dataset", "streamed"]


def test_a_plan_can_be_read_by_people_and_programs():
    text, table = plan(24).text, plan(24).table
    assert "| model | 10.1 |" in text
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "8 GB",
        "12 GB",
        "16 GB",
        "24 GB",
    ]
    assert json.loads(json.dumps(plan(24).to_dict()))["chosen"]["weights"] == need(measured(), MANUAL).weights
    assert "2 × 1024×1024" in plan(24).line
