"""Layers of the GGUF pack: the weights of their file, not the bytes of it, are what is trained beside."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import comfy.model_management as mm
import comfy.sd
import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.adapters.lora_file import read_lora
from in_graph_lora.trainer.adapters.readers import read_start
from in_graph_lora.trainer.config import ADAPTER_KINDS, AdapterConfig, OptimizerConfig
from in_graph_lora.trainer.host import lora
from in_graph_lora.trainer.host.identity import model_fingerprint
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.streaming import streamed

from ..gguf_files import SCALES
from ..gguf_pack import STAND_IN, pack
from ..tiny_models import TINY, build, samples
from .family_case import Case, adapted, relative
from .loaded import identities, train_engine
from .test_quantised import lent, net_of, trained
from .test_quantised_models import config, data_of

FAMILY = "flux1"
every_kind = pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16"])


@pytest.fixture(params=["an own class", "the pack"])
def source(request: Any) -> Any:
    return STAND_IN if request.param == "an own class" else pack()


def needs(source: Any, kind: str) -> None:
    if kind not in source.kinds:
        pytest.skip(f"{kind} only with the pack itself")


def layer_of(source: Any, kind: str, width: int = 128) -> nn.Module:
    needs(source, kind)
    g = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(64, width, generator=g) / 11, torch.randn(64, generator=g)
    with torch.inference_mode():
        layer = source.operations.Linear(width, 64)
        layer.load_state_dict({"weight": source.tensor(weight, kind), "bias": source.tensor(bias, "F32")})
    return layer.requires_grad_(False)


def full(layer: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        weight, bias = layer.cast_bias_weight(dtype=torch.float32, device=torch.device("cpu"))
    return weight.clone(), bias.clone()


def plain(layer: Any) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features)
    made.weight.data, made.bias.data = full(layer)
    return made.requires_grad_(False)


@every_kind
@pytest.mark.parametrize("adapter", ADAPTER_KINDS)
def test_every_adapter_has_the_gradients_that_it_has_beside_the_full_weight(
    source: Any, kind: str, adapter: str
) -> None:
    layer = layer_of(source, kind)
    weight = layer.weight
    with lent(net := net_of(layer)):
        y, gradients = trained(net, adapter)
    expected_y, expected = trained(net_of(plain(layer)), adapter)
    assert layer.weight is weight
    assert gradients.keys() == expected.keys()
    assert relative(y, expected_y) < 1e-5
    assert all(relative(gradients[k], expected[k]) < 1e-5 for k in expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16", *SCALES])
def test_the_output_is_the_packs_and_nothing_is_kept(source: Any, kind: str) -> None:
    layer = layer_of(source, kind, 256)
    x = torch.randn(2, 5, 256, requires_grad=True)
    with torch.inference_mode():
        own = layer(x.detach().clone())
    kept: list[Tensor] = []
    with lent(layer):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = layer(x)
        y.sum().backward()
    assert kept == []
    assert torch.equal(y, own)
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(2, 5, 64) @ full(layer)[0])


def load(source: Any, kind: str, seed: int = 0) -> Any:
    """As the pack's loader gives it: linear layers of the blocks quantised, all else in fp32."""
    needs(source, kind)
    weights = build(TINY[FAMILY], seed).model.diffusion_model.state_dict()
    with torch.inference_mode():
        file = {
            name: source.tensor(w.clone(), kind if w.ndim == 2 and "blocks." in name else "F32")
            for name, w in weights.items()
        }
        patcher = comfy.sd.load_diffusion_model_state_dict(
            file, model_options={"custom_operations": source.operations}
        )
        patcher = source.patcher(patcher)
        mm.load_models_gpu([patcher])
    return patcher


class GgufCase(Case):
    def __init__(self, source: Any, kind: str) -> None:
        self.patcher = load(source, kind)
        self.sampling = self.patcher.model.model_sampling
        with torch.inference_mode(False):
            self.x_0, self.conditioning = samples(self.patcher, TINY[FAMILY], 2)


def bytes_of(patcher: Any) -> dict[str, Tensor]:
    return {n: p.as_subclass(Tensor) + 0 for n, p in patcher.model.named_parameters()}


@every_kind
def test_gradients_of_a_network_are_those_of_the_dequantised_one(source: Any, kind: str) -> None:
    c, other = GgufCase(source, kind), Case(FAMILY)
    for name, layer in other.patcher.model.diffusion_model.named_modules():
        packed = c.patcher.model.diffusion_model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            with torch.inference_mode():
                layer.weight.copy_(full(packed)[0])
    with adapted(other, "all linear") as (denoiser, adapter):
        expected = other.gradients(denoiser, adapter)
    with adapted(c, "all linear") as (denoiser, adapter):
        assert relative(c.gradients(denoiser, adapter), expected) < 1e-5
        with checkpointed(denoiser.blocks, 1):
            assert relative(c.gradients(denoiser, adapter), expected) < 1e-5


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_packed_bytes_travel_when_blocks_are_streamed(source: Any, kind: str, monkeypatch: Any) -> None:
    c = GgufCase(source, kind)
    values, objects = bytes_of(c.patcher), identities(c.patcher.model)
    linear, inside, places = source.operations.Linear, set(), set()
    cast = linear.cast_bias_weight

    def watched(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer in inside:
            places.add(layer.weight.untyped_storage().data_ptr())
        return cast(layer, *args, **kwargs)

    monkeypatch.setattr(linear, "cast_bias_weight", watched)
    found, slots = [], set()
    for share in (0.0, 1.0):
        with (
            adapted(c, "all linear", streamed=share) as (denoiser, adapter),
            streamed(denoiser.away, denoiser.device) as ring,
            checkpointed(denoiser.blocks, 1),
        ):
            inside.update(m for away in denoiser.away for m in away.block.modules())
            found.append(c.gradients(denoiser, adapter))
            slots.update(slot.data_ptr() for slot in (ring.slots if ring else []))
    assert torch.equal(*found)
    assert len(slots) == 2
    assert places == slots, "also for the gradients"
    assert identities(c.patcher.model) == objects
    assert all(torch.equal(v, values[n]) for n, v in bytes_of(c.patcher).items())


@every_kind
def test_three_steps_leave_the_model_as_it_was(source: Any, kind: str, tmp_path: Any) -> None:
    patcher = load(source, kind)
    values, objects = bytes_of(patcher), identities(patcher.model)
    for adapter in ("lora", "dora", "oft"):
        more = AdapterConfig(kind=adapter, rank=4)  # type: ignore[arg-type]
        result = train_engine(patcher, data_of(patcher), config(adapter=more), tmp_path / adapter)
        assert len(result.losses) == 3
    assert identities(patcher.model) == objects
    assert all(torch.equal(v, values[n]) for n, v in bytes_of(patcher).items())


@pytest.mark.parametrize("adapter", ADAPTER_KINDS)
def test_a_file_does_in_comfyui_and_as_a_start_what_was_trained(adapter: Any, tmp_path: Any) -> None:
    c = GgufCase(pack(), "Q4_0")  # it is the pack that applies a file
    noised = c.noised()

    def predicted(patcher: Any, start: Any = None) -> Tensor:
        with torch.inference_mode(False), torch.no_grad(), borrowed(patcher) as denoiser:
            options = AdapterConfig(kind=adapter)
            with injected(denoiser.net, options, seed=0, start=start) if start else nullcontext():
                return denoiser.predict(noised.x_t, noised.sigma, c.conditioning)

    settings = config(
        adapter=AdapterConfig(kind=adapter, rank=4), optimizer=OptimizerConfig(learning_rate=0.05)
    )
    result = train_engine(c.patcher, data_of(c.patcher), settings, tmp_path)
    before = predicted(c.patcher)
    tensors, metadata = read_lora(result.path)
    start = read_start(
        tensors, lora.aliases(c.patcher), lora.layer_shapes(c.patcher), file_alpha=0, metadata=metadata
    )
    trained = predicted(c.patcher, start)
    patched, _ = lora.apply_lora(c.patcher, None, tensors, 1.0, 1.0)
    assert relative(before, trained) > 1e-3
    assert relative(predicted(patched), trained) < 1e-4
    assert torch.equal(predicted(c.patcher), before)


@every_kind
def test_a_model_is_known_by_the_values_of_its_file(source: Any, kind: str) -> None:
    one, again, other = (model_fingerprint(load(source, kind, seed)) for seed in (0, 0, 1))
    assert one[0] != other[0]
    if not one[1]:
        assert one == again
