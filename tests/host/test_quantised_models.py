"""Files with quantised weights, loaded by ComfyUI's loader and trained by the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import comfy.model_management as mm
import comfy.sd
import pytest
import torch
from torch import Tensor

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.config import ADAPTER_KINDS, AdapterConfig, DataConfig, MemoryConfig, TrainConfig
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.data.cache import TrainingData
from in_graph_lora.trainer.host.identity import model_fingerprint
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.host.quantised import packed
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.compiling import compiled
from in_graph_lora.trainer.memory.streaming import streamed

from ..quantised import FORMATS, Format, quantised_file
from ..tiny_models import TINY, build, samples
from .family_case import Case, adapted, one_of_each, relative
from .loaded import identities, train_engine, weight_hash

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*_scaled_mm.*")]
FAMILY = "flux1"
SHORT = ("fp8_e4m3fn", "fp8_e4m3fn_scaled", "nvfp4", "int8_convrot", "convrot_w4a4")


def load(form: Format, seed: int = 0) -> Any:
    """A ModelPatcher, as Load Diffusion Model gives it for a file of this format."""
    weights = build(TINY[FAMILY], seed).model.diffusion_model.state_dict()
    with torch.inference_mode():
        file = quantised_file({k: v.clone() for k, v in weights.items()}, form)
        options = {} if form.algo else {"dtype": file["double_blocks.0.img_attn.qkv.weight"].dtype}
        patcher = comfy.sd.load_diffusion_model_state_dict(file, model_options=options)
        assert patcher is not None
        mm.load_models_gpu([patcher])  # replaces parameters by equal ones, the first time
        return patcher


class QuantisedCase(Case):
    def __init__(self, form: Format) -> None:
        self.patcher = load(form)
        self.sampling = self.patcher.model.model_sampling
        with torch.inference_mode(False):
            self.x_0, self.conditioning = samples(self.patcher, TINY[FAMILY], 2)


@lru_cache(2)
def case(name: str) -> QuantisedCase:
    return QuantisedCase(FORMATS[name])


@pytest.fixture(autouse=True, scope="module")
def _models_go() -> Iterator[None]:
    yield
    case.cache_clear()


def config(**more: Any) -> TrainConfig:
    return TrainConfig(name="test", steps=3, data=DataConfig(batch_size=1), **more)


def data_of(patcher: Any) -> TrainingData:
    with torch.inference_mode(False):
        x_0, conditions = samples(patcher, TINY[FAMILY], 2)
    both = [
        CachedSample(latent=x, conditioning=c, key=str(i), caption=f"caption {i}")
        for i, (x, c) in enumerate(zip(x_0, conditions, strict=True))
    ]
    return TrainingData(samples=both)


every_format = pytest.mark.parametrize("name", FORMATS)


@every_format
def test_the_network_predicts_what_comfyuis_own_does(name: str) -> None:
    c = case(name)
    noised = c.noised()
    with torch.inference_mode(False), torch.no_grad(), borrowed(c.patcher) as denoiser:
        without = denoiser.predict(noised.x_t, noised.sigma, c.conditioning)
    with torch.inference_mode(False), borrowed(c.patcher) as denoiser:
        config = AdapterConfig(rank=2, targets="attention")
        with injected(denoiser.net, config, seed=1):
            output = denoiser.predict(noised.x_t, noised.sigma, c.conditioning)
    assert output.requires_grad
    assert torch.equal(output, without)


@every_format
def test_gradients_are_the_same_with_blocks_checkpointed_and_none(name: str) -> None:
    c = case(name)
    with adapted(c, "all linear") as (denoiser, adapter):
        gradients: list[Tensor] = []
        for every in (0, 1, 2):
            with checkpointed(denoiser.blocks, every):
                gradients.append(c.gradients(denoiser, adapter))
    assert gradients[0].norm() > 0
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def leaves(tensor: Tensor) -> list[Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [leaf for name in tensor.__tensor_flatten__()[0] for leaf in leaves(getattr(tensor, name))]


@every_format
def test_gradients_of_streamed_blocks_are_those_of_resident_ones_and_packed_bytes_travel(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = case(name)
    found: list[Tensor] = []
    cast, places, inside = comfy.ops.cast_bias_weight, set(), set()

    def watched(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer in inside and (packed(layer.weight) or layer.weight.dtype.itemsize == 1):
            places.update(leaf.untyped_storage().data_ptr() for leaf in leaves(layer.weight))
        return cast(layer, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", watched)
    for share in (0.0, 1.0):
        with (
            adapted(c, "all linear", streamed=share) as (denoiser, adapter),
            streamed(denoiser.away, denoiser.device) as ring,
            checkpointed(denoiser.blocks, 1),
        ):
            inside.update(m for away in denoiser.away for m in away.block.modules())
            found.append(c.gradients(denoiser, adapter))
            slots = {slot.data_ptr() for slot in ring.slots} if ring else set()
    assert torch.equal(*found)
    assert ring is not None
    assert places == slots, "also for the gradients weights are dequantised from what has come"
    largest = max(denoiser.blocks, key=lambda block: sum(p.numel() for p in block.parameters()))
    full = sum(4 * p.numel() for p in largest.parameters())
    assert ring.nbytes < 0.6 * full, "of the fp32 block that it would be"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", ["fp8_e4m3fn_scaled", "convrot_w4a4"])
def test_compiled_and_streamed_blocks_give_the_same_gradients(name: str) -> None:
    c = case(name)
    with adapted(c, "all linear") as (denoiser, adapter):
        right = c.gradients(denoiser, adapter)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    with adapted(c, "all linear", streamed=1.0) as (denoiser, adapter), ExitStack() as stack:
        stack.enter_context(compiled(one_of_each(denoiser.blocks), backend="aot_eager"))
        stack.enter_context(streamed(denoiser.away, denoiser.device))
        stack.enter_context(checkpointed(denoiser.blocks, 1))
        graphs = []
        for _ in range(2):
            assert relative(c.gradients(denoiser, adapter), right) < 1e-5
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        frames = torch._dynamo.utils.counters["frames"]
    assert 0 < graphs[0] == graphs[1]
    assert frames["ok"] == frames["total"], "what follows a quantised layer was left as it is"


@every_format
def test_three_steps_learn_and_leave_the_model_as_it_was(name: str, tmp_path: Any) -> None:
    patcher = load(FORMATS[name])
    before = weight_hash(patcher.model), identities(patcher.model)
    plain = train_engine(patcher, data_of(patcher), config(), tmp_path / "plain")
    memory = MemoryConfig(fit="manual", checkpointing=1)
    saving = train_engine(patcher, data_of(patcher), config(memory=memory), tmp_path / "saving")
    assert (weight_hash(patcher.model), identities(patcher.model)) == before
    assert plain.losses == saving.losses
    assert all(torch.equal(plain.lora[k], saving.lora[k]) for k in plain.lora)
    assert any(t.abs().sum() > 0 for k, t in plain.lora.items() if "lora_up" in k)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_trains(name: str, kind: Any, tmp_path: Any) -> None:
    patcher = case(name).patcher
    result = train_engine(
        patcher, data_of(patcher), config(adapter=AdapterConfig(kind=kind, rank=4)), tmp_path
    )
    assert len(result.losses) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError])
@pytest.mark.parametrize("name", SHORT)
def test_weights_are_the_same_after_an_error_and_an_interrupt(name: str, error: Any, tmp_path: Any) -> None:
    patcher = case(name).patcher
    before = weight_hash(patcher.model), identities(patcher.model)

    def fail(event: Any) -> None:
        if type(event).__name__ == "StepDone":
            raise error("stop")

    with pytest.raises(error):
        train_engine(patcher, data_of(patcher), config(memory=MemoryConfig(fit="manual")), tmp_path, fail)
    assert (weight_hash(patcher.model), identities(patcher.model)) == before


@every_format
def test_a_model_is_known_by_its_quantised_weights(name: str) -> None:
    one, again, other = (model_fingerprint(load(FORMATS[name], seed)) for seed in (0, 0, 1))
    assert one == again
    assert one[1] == []
    assert one[0] != other[0]


def test_gradients_are_those_of_the_dequantised_network_where_comfyui_dequantises() -> None:
    name = "fp8_e4m3fn_scaled"  # on the CPU
    c = case(name)
    with adapted(c, "all linear") as (denoiser, adapter):
        own = c.gradients(denoiser, adapter)
    plain = Case(FAMILY)
    weights = c.patcher.model.diffusion_model
    for layer_name, layer in plain.patcher.model.diffusion_model.named_modules():
        weight = getattr(weights.get_submodule(layer_name), "weight", None)
        if type(weight).__name__ == "QuantizedTensor":
            with torch.inference_mode():
                layer.weight.copy_(weight.dequantize())
    with adapted(plain, "all linear") as (denoiser, adapter):
        assert relative(own, plain.gradients(denoiser, adapter)) < 1e-5
