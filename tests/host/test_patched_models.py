"""Training on top of a LoRA of the graph: the model that the sampler would sample with is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.adapters.lora_file import file_tensors, read_lora
from in_graph_lora.trainer.adapters.readers import read_start
from in_graph_lora.trainer.config import ADAPTER_KINDS, AdapterConfig, MemoryConfig, OptimizerConfig
from in_graph_lora.trainer.host import lora, staging
from in_graph_lora.trainer.host import model as host_model
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.streaming import streamed

from ..gguf_pack import STAND_IN, pack
from ..quantised import FORMATS
from .family_case import Case, adapted, relative
from .loaded import identities, train_engine, weight_hash
from .patched import MODES, PatchedCase, dynamic, mode_of
from .test_base_precision import merged as dequantised
from .test_gguf import GgufCase
from .test_quantised_models import QuantisedCase, config, data_of
from .test_streaming import PoisonedRing

pytestmark = pytest.mark.filterwarnings("ignore:.*_scaled_mm.*")
every_mode = pytest.mark.parametrize("mode", MODES)
every_share = pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
WIDER = "a file in fp32 of a model in bf16"
KINDS = ("fp32", "bf16", "fp8_e4m3fn", "fp8_e4m3fn_scaled", "int8_by_row", "nvfp4")


@pytest.fixture
def _as_in(mode: str) -> Iterator[None]:
    with mode_of(mode):
        yield
        mm.unload_all_models()


def base_of(kind: str) -> Case:
    if kind in FORMATS:
        return QuantisedCase(FORMATS[kind])
    c = Case("flux1", dtype=torch.bfloat16 if kind == "bf16" else torch.float32)
    for layer in c.patcher.model.modules() if kind == WIDER else ():
        if isinstance(layer, nn.Linear):
            layer.weight_comfy_model_dtype = torch.bfloat16
    return c


def output(c: Case, share: float = 0.0, **memory: Any) -> Tensor:
    """The network's in a loan."""
    noised = c.noised()
    config = MemoryConfig(fit="manual", streamed=share, **memory)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        borrowed(c.patcher, config) as denoiser,
        streamed(denoiser.away, denoiser.device, PoisonedRing),
    ):
        return denoiser.predict(noised.x_t, noised.sigma, c.conditioning)


def gradients(c: Case, share: float = 0.0, **options: Any) -> Tensor:
    with (
        adapted(c, "all linear", streamed=share, **options) as (denoiser, adapter),
        streamed(denoiser.away, denoiser.device, PoisonedRing),
        checkpointed(denoiser.blocks, 1),
    ):
        return c.gradients(denoiser, adapter)


@every_mode
@pytest.mark.parametrize("kind", [*KINDS, WIDER])
@pytest.mark.usefixtures("_as_in")
def test_the_forward_pass_is_that_of_the_sampler_bit_for_bit(mode: str, kind: str) -> None:
    if kind == WIDER and mode != "dynamic":
        pytest.skip("other loaders cast when they read the file")
    base = base_of(kind)
    if mode == "dynamic":
        base.patcher = dynamic(base.patcher)
    without = output(base)
    c = PatchedCase(base)
    right = c.sampled()
    mm.unload_all_models()
    for share in (0.0, 0.5, 1.0):
        assert torch.equal(output(c, share), right)
    assert torch.equal(c.sampled(), right)
    assert relative(right, without) > 1e-2
    assert torch.equal(output(base), without)


@pytest.mark.parametrize("mode", ["loaded", "unloaded"])
@pytest.mark.parametrize("source", ["an own class", "the pack"])
@pytest.mark.usefixtures("_as_in")
def test_packed_tensors_of_a_pack_carry_the_patch_during_the_loan_only(mode: str, source: str) -> None:
    base = GgufCase(STAND_IN if source == "an own class" else pack(), "Q8_0")
    without, right = output(base), PatchedCase(base).sampled()
    mm.unload_all_models()
    c = PatchedCase(base)
    for share in (0.0, 0.5, 1.0):
        assert torch.equal(output(c, share), right)
        mm.unload_all_models()
        assert not any(getattr(p, "patches", None) for p in c.patcher.model.parameters())
    assert relative(right, without) > 1e-2
    assert torch.equal(gradients(c, 0.5), gradients(c))
    mm.unload_all_models()
    assert torch.equal(output(base), without)


def merged() -> Case:
    """The network whose own weights are the patched ones."""
    c, other = PatchedCase(Case("flux1")), Case("flux1")
    mm.load_models_gpu([c.patcher], force_full_load=True)
    with torch.inference_mode():
        other.patcher.model.load_state_dict(c.patcher.model.state_dict())
    mm.unload_all_models()
    return other


@every_mode
@every_share
@pytest.mark.usefixtures("_as_in")
def test_gradients_are_those_of_a_network_whose_weights_are_merged(mode: str, share: float) -> None:
    found = gradients(PatchedCase(Case("flux1"), mode), share)
    assert relative(found, gradients(merged())) < 1e-6


@every_mode
@pytest.mark.parametrize("kind", ["bf16", "fp8_e4m3fn", "int8_by_row"])
@pytest.mark.usefixtures("_as_in")
def test_streamed_gradients_are_those_of_a_resident_run_in_each_precision(mode: str, kind: str) -> None:
    c = PatchedCase(base_of(kind), mode)
    resident = gradients(c)
    assert torch.equal(gradients(c, 0.5), resident)
    assert torch.equal(gradients(c, 1.0), resident)


@every_mode
@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.usefixtures("_as_in")
def test_base_precision_quantises_the_patched_weights(mode: str, share: float) -> None:
    found = gradients(PatchedCase(Case("flux1"), mode), share, base_precision="int8")
    assert relative(found, gradients(merged(), base_precision="int8")) < 1e-6


@every_mode
@pytest.mark.parametrize("kind", ["bf16", "fp8_e4m3fn_scaled"])
@pytest.mark.parametrize("fails", ["in the loan", "while patching"])
@pytest.mark.usefixtures("_as_in")
def test_afterwards_the_model_is_what_it_was_also_after_an_error(
    mode: str, kind: str, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(kind)
    mm.unload_all_models()
    before = weight_hash(base.patcher.model)
    c = PatchedCase(base, mode)
    model, objects = c.patcher.model, {}
    view = staging.trainable_view

    @contextmanager
    def watched(module: Any, make: Any) -> Iterator[None]:
        def failing(layer: Any, name: str, tensor: Tensor) -> Tensor:
            if fails == "while patching" and "single_blocks.1.linear2" in names[layer]:
                raise KeyboardInterrupt
            return make(layer, name, tensor)

        names = {m: name for name, m in module.named_modules()}
        objects.update(identities(model))
        attributes = [dict(vars(m)) for m in model.modules()]
        try:
            with view(module, failing):
                yield
        finally:
            assert identities(model) == objects
            assert [dict(vars(m)) for m in model.modules()] == attributes

    monkeypatch.setattr(host_model, "trainable_view", watched)
    for share in (0.0, 0.5):
        with pytest.raises(KeyboardInterrupt), adapted(c, streamed=share):
            raise KeyboardInterrupt
    assert len(objects) > 100
    assert not any("forward" in vars(m) for m in model.modules())
    mm.unload_all_models()
    if mode == "dynamic":
        c.patcher.restore_loaded_backups()
    assert weight_hash(model) == before


@every_mode
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.usefixtures("_as_in")
def test_the_saved_file_holds_no_patch_and_with_it_gives_what_was_trained(
    mode: str, kind: Any, tmp_path: Path
) -> None:
    c = PatchedCase(Case("flux1"), mode)
    before = output(c, 0.5)
    settings = config(
        adapter=AdapterConfig(kind=kind, rank=4),
        optimizer=OptimizerConfig(learning_rate=0.05),
        memory=MemoryConfig(fit="manual", streamed=0.5),
    )
    result = train_engine(c.patcher, data_of(c.patcher), settings, tmp_path)
    tensors, metadata = read_lora(result.path)
    start = read_start(
        tensors, lora.aliases(c.patcher), lora.layer_shapes(c.patcher), file_alpha=0, metadata=metadata
    )
    noised = c.noised()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        borrowed(c.patcher) as denoiser,
        injected(denoiser.net, AdapterConfig(kind=kind), seed=0, start=start) as adapter,
    ):
        assert len(adapter.layers) == len(start.layers)
        trained = denoiser.predict(noised.x_t, noised.sigma, c.conditioning)
    c.patcher, _ = lora.apply_lora(c.patcher, None, tensors, 1.0, 1.0)
    assert relative(before, trained) > 1e-3
    assert relative(c.sampled(), trained) < 1e-5


@every_mode
@pytest.mark.usefixtures("_as_in")
def test_the_magnitude_of_a_dora_in_pefts_spelling_is_over_the_patched_weight(mode: str) -> None:
    c = PatchedCase(Case("flux1"), mode)
    noised = c.noised()
    with adapted(c, "regex:mlp", kind="dora") as (denoiser, adapter), torch.no_grad():
        trained = denoiser.predict(noised.x_t, noised.sigma, c.conditioning)
        tensors = file_tensors(adapter, lora.file_names(c.patcher, adapter.layers, "diffusers"))
    assert any("lora_magnitude_vector" in name for name in tensors)
    c.patcher, _ = lora.apply_lora(c.patcher, None, tensors, 1.0, 1.0)
    assert relative(c.sampled(), trained) < 1e-5


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("_as_in")
def test_a_bypass_lora_is_around_its_layers_in_training_too(mode: str, share: float) -> None:
    c = PatchedCase(Case("flux1"), mode, bypass=True)
    right = c.sampled()
    mm.unload_all_models()
    assert torch.equal(output(c, share), right)
    assert relative(gradients(c, share), gradients(PatchedCase(Case("flux1")))) < 1e-5


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_the_gradient_of_a_layer_held_in_another_precision_sees_its_bypass_lora(precision: str) -> None:
    quantises = gradients(PatchedCase(Case("flux1"), bypass=True), base_precision=precision)
    other = PatchedCase(dequantised(Case("flux1"), precision), bypass=True)
    assert relative(quantises, gradients(other)) < 1e-5
