"""The plan that is made before a run, against what the run then takes of the card."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import pytest
import torch

from in_graph_lora.trainer.host import training

from .test_given_back import memories, run

pytestmark = pytest.mark.gpu

WITHIN = 0.1


@memories
def test_the_predicted_peak_is_within_a_tenth_of_the_measured_one(
    loaded, pictures, tmp_path, device, memory, monkeypatch: pytest.MonkeyPatch, record_property: Any
):
    plans, make = [], training.plan_run

    def noted(*args: Any, **kwargs: Any) -> Any:
        plans.append(make(*args, **kwargs))
        return plans[-1]

    def at_step(step: int) -> None:
        """What was tried out for the plan, encoding and the checked first pass do not count."""
        if step == 1 and device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    monkeypatch.setattr(training, "plan_run", noted)
    with torch.inference_mode():
        mm.unload_all_models()
    run(loaded, pictures, tmp_path, memory, at_step)
    ((plan, _),) = plans
    record_property("predicted", predicted := plan.chosen.device)
    assert predicted > plan.chosen.weights > 0
    assert plan.chosen.memory == memory
    if device.type == "cuda":
        record_property("measured", peak := torch.cuda.max_memory_allocated())
        assert abs(predicted - peak) < WITHIN * peak
