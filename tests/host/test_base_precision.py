"""Weights that are held in fp8 or int8 for a run; the model on the canvas is not."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.ops
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from safetensors import safe_open
from torch import Tensor, nn

from in_graph_lora.trainer.config import ADAPTER_KINDS, MemoryConfig
from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.host import base_precision
from in_graph_lora.trainer.host.base_precision import BasePrecision, quantised
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.host.quantised import quantised_layers_differentiable
from in_graph_lora.trainer.host.staging import Staging, trainable_view
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.streaming import streamed
from in_graph_lora.trainer.runs.folder import previous_runs

from ..quantised import FORMATS
from .family_case import Case, adapted, relative
from .loaded import identities, train, train_engine, weight_hash, write_pictures
from .test_quantised import INPUTS, OUTPUTS, data, full_copies
from .test_quantised_models import QuantisedCase, config, data_of
from .test_streaming import PoisonedRing

pytestmark = pytest.mark.skipif(
    "int8_tensorwise" not in QUANT_ALGOS, reason="this ComfyUI cannot hold weights in int8"
)

CPU = torch.device("cpu")
both = pytest.mark.parametrize("precision", ["fp8", "int8"])


def merged(c: Case, precision: str) -> Case:
    """The same network, whose weights are the dequantised ones."""
    with torch.inference_mode(False), borrowed(c.patcher) as denoiser:
        blocks = denoiser.blocks
    with torch.inference_mode():
        for layer in {m for block in blocks for m in block.modules()}:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.copy_(quantised(layer.weight, precision).dequantize())
    return c


def gradients(c: Case, share: float = 0.0, **options: Any) -> Tensor:
    with (
        adapted(c, "all linear", streamed=share, **options) as (denoiser, adapter),
        streamed(denoiser.away, denoiser.device, PoisonedRing),
        checkpointed(denoiser.blocks, 1 if share else 0),
    ):
        c.gradients(denoiser, adapter)
        return c.gradients(denoiser, adapter)


@both
@pytest.mark.parametrize(
    ("family", "kind"), [*(("flux1", kind) for kind in ADAPTER_KINDS), ("sd15", "locon"), ("z_image", "lora")]
)
def test_gradients_are_those_of_the_network_with_the_dequantised_weights(
    precision: str, family: str, kind: str
) -> None:
    c = Case(family)
    found, as_loaded = gradients(c, base_precision=precision, kind=kind), gradients(c, kind=kind)
    assert relative(found, gradients(merged(c, precision), kind=kind)) < 1e-5
    assert relative(found, as_loaded) > 1e-4


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_blocks_give_the_gradients_of_resident_ones_and_packed_bytes_travel(
    precision: str, dtype: torch.dtype
) -> None:
    c = Case("flux1", dtype=dtype)
    resident = gradients(c, base_precision=precision)
    for share in (0.5, 1.0):
        assert torch.equal(gradients(c, share, base_precision=precision), resident)
    memory = MemoryConfig(fit="manual", streamed=1, base_precision=precision)
    with torch.inference_mode(False), borrowed(c.patcher, memory) as denoiser:
        copied = sum(
            p.numel() * (1 if isinstance(p, QuantizedTensor) else dtype.itemsize)
            for block in denoiser.blocks
            for p in block.parameters()
        )
        assert sum(block.nbytes for block in denoiser.away) < 1.2 * copied < 1.2 * c.patcher.model_size() / 2
        assert any("lies in system memory" in remark for remark in denoiser.remarks)
    with torch.inference_mode(False), borrowed(c.patcher, replace(memory, streamed=0.0)) as denoiser:
        assert not any("lies in system memory" in remark for remark in denoiser.remarks)


def test_norms_biases_and_what_is_outside_of_the_blocks_stay_as_loaded() -> None:
    c = Case("flux1")
    memory = MemoryConfig(fit="manual", base_precision="int8")
    with torch.inference_mode(False), borrowed(c.patcher, memory) as denoiser:
        inside = {id(p) for block in denoiser.blocks for p in block.parameters()}
        for name, p in denoiser.net.named_parameters():
            quantises = id(p) in inside and name.endswith("weight") and p.ndim > 1
            assert isinstance(p, QuantizedTensor) == quantises, name


def test_a_weight_that_the_model_has_quantised_stays_as_it_is_and_that_is_said() -> None:
    c = QuantisedCase(FORMATS["fp8_e4m3fn"])
    as_loaded = gradients(c)
    assert torch.equal(gradients(c, base_precision="int8"), as_loaded)
    memory = MemoryConfig(fit="manual", base_precision="int8")
    with torch.inference_mode(False), borrowed(c.patcher, memory) as denoiser:
        assert denoiser.base_precision == "as loaded"
        (remark,) = denoiser.remarks
    layers = sum(isinstance(m, nn.Linear) for block in denoiser.blocks for m in block.modules())
    assert f"base_precision is int8, but {layers} weights" in remark
    assert "stay as loaded" in remark


@both
@pytest.mark.parametrize("fails", ["at the third weight", "in the loan"])
def test_the_model_is_the_same_objects_with_the_same_bytes_also_after_an_error(
    precision: str, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = Case("flux1")
    before = weight_hash(c.patcher.model), identities(c.patcher.model)
    gradients(c, 0.5, base_precision=precision)
    assert (weight_hash(c.patcher.model), identities(c.patcher.model)) == before
    calls = 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("full")
        return quantised(*args)

    if fails == "at the third weight":
        monkeypatch.setattr(base_precision, "quantised", failing)

    def lent() -> None:
        with adapted(c, base_precision=precision) as (denoiser, adapter):
            c.gradients(denoiser, adapter)
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        lent()
    assert (weight_hash(c.patcher.model), identities(c.patcher.model)) == before
    assert not any("forward" in vars(m) for m in c.patcher.model.modules())


@both
def test_a_resumed_run_equals_an_uninterrupted_one(precision: str, tmp_path: Path) -> None:
    c = Case("flux1")
    memory = MemoryConfig(fit="manual", base_precision=precision)
    settings, samples = config(memory=memory), data_of(c.patcher)
    straight = train_engine(c.patcher, samples, settings, tmp_path / "straight")

    def fail(event: Any) -> None:
        if type(event).__name__ == "StepDone" and event.step == 2:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train_engine(c.patcher, samples, settings, tmp_path / "resumed", fail)
    (folder,) = previous_runs(tmp_path / "resumed" / "runs")
    resumed = train_engine(c.patcher, samples, settings, tmp_path / "resumed", folder=folder)
    assert resumed.losses == straight.losses
    assert all(torch.equal(resumed.lora[k], straight.lora[k]) for k in straight.lora)
    with safe_open(resumed.path, "pt") as file:
        assert file.metadata()["ss_base_precision"] == precision
    plain = train_engine(c.patcher, samples, config(), tmp_path / "plain")
    assert plain.losses != straight.losses
    with safe_open(plain.path, "pt") as file:
        assert "ss_base_precision" not in file.metadata()


def test_a_run_in_the_graph_says_what_its_weights_are_held_in(loaded: Any, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", [(64, 64)])
    events: list[Any] = []
    memory = MemoryConfig(fit="manual", base_precision="int8")
    before = weight_hash(loaded.model.model), identities(loaded.model.model)
    result = train(loaded, pictures, tmp_path, emit=events.append, memory=memory, steps=1)
    said = [e.message for e in events if type(e).__name__ == "Notice" and "held in int8" in e.message]
    assert len(said) == 1
    assert (weight_hash(loaded.model.model), identities(loaded.model.model)) == before
    with safe_open(result.path, "pt") as file:
        assert file.metadata()["ss_base_precision"] == "int8"


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 128), (6, 4, 3, 3), (6, 4, 3, 3, 3)])
def test_a_quantised_weight_is_near_the_weight_and_half_of_a_bf16_ones_size(
    precision: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 10).to(dtype)
    held = quantised(weight, precision)
    full = held.dequantize()
    assert (full.dtype, full.shape) == (dtype, weight.shape)
    assert relative(full.float(), weight.float()) < {"fp8": 0.03, "int8": 0.01}[precision]
    assert held._qdata.dtype.itemsize == 1
    exact = held.to(torch.float32).dequantize()
    assert relative(full.float(), exact) < torch.finfo(dtype).eps, "the scale itself is rounded by no dtype"
    assert torch.equal(quantised(torch.zeros(shape, dtype=dtype), precision).dequantize(), torch.zeros(shape))


@both
def test_between_the_passes_no_copy_of_the_weight_exists(precision: str) -> None:
    layer = comfy.ops.manual_cast.Linear(INPUTS, OUTPUTS, dtype=torch.float32)
    layer.load_state_dict({"weight": torch.randn(OUTPUTS, INPUTS), "bias": torch.zeros(OUTPUTS)})
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    x, slope = data()
    base = BasePrecision(precision, [layer], CPU)
    with (
        torch.inference_mode(False),
        trainable_view(layer, Staging(CPU, held=base.held).view),
        base.dequantised_at_use(),
        quantised_layers_differentiable(layer),
    ):
        gc.collect()
        before = full_copies(layer)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = layer(x)
        assert kept == []
        assert full_copies(layer) == before
        y.backward(slope)
        assert torch.equal(x.grad, slope @ layer.weight.dequantize())  # type: ignore[arg-type]


def test_a_comfyui_without_the_format_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(QUANT_ALGOS, "int8_tensorwise")
    with (
        pytest.raises(ModelError, match="cannot hold weights in int8"),
        adapted(Case("flux1"), base_precision="int8"),
    ):
        pass


def test_the_backward_pass_reads_the_weights_that_have_come_for_the_recomputation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: set[int] = set()
    dequantize = QuantizedTensor.dequantize

    def seen(self: Any) -> Tensor:
        read.add(self._qdata.untyped_storage().data_ptr())
        return dequantize(self)

    c = Case("flux1")
    with (
        adapted(c, "all linear", streamed=1.0, base_precision="int8") as (denoiser, adapter),
        streamed(denoiser.away, denoiser.device, PoisonedRing) as ring,
        checkpointed(denoiser.blocks, 1),
    ):
        assert ring is not None
        monkeypatch.setattr(QuantizedTensor, "dequantize", seen)
        c.gradients(denoiser, adapter)
        assert read == {slot.untyped_storage().data_ptr() for slot in ring.slots}
