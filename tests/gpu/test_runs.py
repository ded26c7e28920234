"""Runs on the GPU: resumed, compiled, in half precision, with other models on the card, beside a LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from in_graph_lora.trainer.config import AdapterConfig, OptimizerConfig
from in_graph_lora.trainer.updater import GradScaler

from ..host.loaded import weight_hash
from ..tiny_models import TINY, build
from .test_given_back import STEPS, Stop, fingerprint, manual, nearly, run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("streamed", [0.0, 1.0])
def test_resumed_equals_straight_within_1e_5(loaded, pictures, tmp_path, device, streamed):
    everything: dict[str, Any] = {
        "adapter": AdapterConfig(rank=2, dropout=0.2),
        "optimizer": OptimizerConfig(learning_rate=1e-3, accumulation=2, ema_decay=0.9, warmup_steps=1),
    }
    memory = manual(streamed=streamed)
    whole = run(loaded, pictures, tmp_path / "straight", memory, **everything)

    def stop(step: int) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        run(loaded, pictures, tmp_path / "stopped", memory, stop, **everything)
    assert nearly(run(loaded, pictures, tmp_path / "stopped", memory, new_run=False, **everything), whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_each_precision_learns_and_fp16_goes_through_the_scaler(
    loaded, pictures, tmp_path, device, precision, monkeypatch
):
    scaled: list[bool] = []
    step = GradScaler.step

    def counted(self: Any, optimizer: Any) -> Any:
        scaled.append(self.is_enabled())
        return step(self, optimizer)

    monkeypatch.setattr(GradScaler, "step", counted)
    before = fingerprint(loaded)
    result = run(loaded, pictures, tmp_path, manual(precision=precision), steps=2 * STEPS)
    assert fingerprint(loaded) == before
    assert set(scaled) == {precision == "fp16"}
    assert len(scaled) - 2 * STEPS in (0, 1), "the plan tries out one step, where it is not known yet"
    ups = [t for k, t in result.lora.items() if "lora_up" in k]
    assert all(torch.isfinite(t).all() for t in result.lora.values())
    assert any(t.abs().max() > 0 for t in ups)


@pytest.mark.filterwarnings("ignore::UserWarning")  # inductor's own, of the machine that it compiles on
@pytest.mark.parametrize("streamed", [0.0, 1.0])
def test_compiled_blocks_train_to_nearly_the_same_lora(loaded, pictures, tmp_path, device, streamed):
    if device.type == "cpu":  # a compiler for C++ is not what is rehearsed
        pytest.skip("compiles on a GPU only")
    memory = manual(streamed=streamed, checkpointing=1)
    torch.compiler.reset()
    plain = run(loaded, pictures, tmp_path / "plain", memory, steps=2)
    fast = run(loaded, pictures, tmp_path / "compiled", replace(memory, compile=True), steps=2)
    assert nearly(fast, plain, 1e-2)


@pytest.mark.parametrize("streamed", [0.0, 1.0])
def test_a_model_can_be_trained_while_others_hold_the_card(loaded, pictures, tmp_path, device, streamed):
    others = [build(TINY[name], device=device) for name in ("flux1", "sd3", "z_image")]
    with torch.inference_mode():
        mm.load_models_gpu(others)
    prints = [weight_hash(other.model) for other in others]
    before = fingerprint(loaded)
    alone = run(loaded, pictures, tmp_path / "alone", manual(streamed=streamed))
    with torch.inference_mode():
        mm.load_models_gpu(others)
    assert nearly(run(loaded, pictures, tmp_path / "beside", manual(streamed=streamed)), alone)
    assert fingerprint(loaded) == before
    assert [weight_hash(other.model) for other in others] == prints


def test_a_clone_of_a_model_that_was_freed_is_no_hindrance(loaded, pictures, tmp_path, device):
    freed = build(TINY["flux1"], device=device)
    network, clone = freed.model, freed.clone()
    with torch.inference_mode():
        mm.load_models_gpu([clone])
    del freed, clone
    assert run(loaded, pictures, tmp_path, manual()).path.exists()
    assert network is not None
