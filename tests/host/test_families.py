"""Each family, on a tiny network of ComfyUI's own class: targets, gradients, restoration.

The oracle for gradients is PyTorch's `allow_mutation_on_saved_tensors`, which clones what is overwritten; it
knows nothing of our mechanism, and finite differences in float64 prove it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import comfy.model_base
import comfy.model_management as mm
import comfy.model_sampling
import comfy.samplers
import comfy_kitchen
import pytest
import torch
from comfy_extras.nodes_lt import LTXVScheduler, ModelSamplingLTXV
from torch import Tensor

from in_graph_lora.trainer.adapters.inject import Adapter, injected
from in_graph_lora.trainer.adapters.targets import target_layers
from in_graph_lora.trainer.config import AdapterConfig, ObjectiveConfig
from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.families import UNLISTED, family_of
from in_graph_lora.trainer.host.model import HostDenoiser, borrowed, model_family, tokens
from in_graph_lora.trainer.host.noise import AffineProcess, noise_process, raw_output_sampling
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.noise import Noised, add_noise
from in_graph_lora.trainer.timesteps import flux_shift, resolution_shift, sigma_from_uniform

from ..tiny_models import TINY
from .family_case import Case, adapted, relative
from .loaded import identities, weight_hash

oracle = torch.autograd.graph.allow_mutation_on_saved_tensors
every_family = pytest.mark.parametrize("name", TINY)


@lru_cache
def case(name: str) -> Case:
    return Case(name)


@pytest.fixture(autouse=True, scope="module")
def _models_go() -> Iterator[None]:
    yield
    case.cache_clear()


# ---------------------------------------------------------------- what the network predicts


@every_family
def test_target_is_the_output_from_which_the_model_computes_x_0(name: str) -> None:
    c = case(name)
    noised = c.noised()
    sigma, x_t = stock_noise(c, noised)
    x_0 = c.sampling.calculate_denoised(sigma, noised.target, x_t)
    assert relative(x_0, c.x_0) < 1e-5


@every_family
def test_predict_is_the_networks_output_in_the_stock_models_denoising(name: str) -> None:
    c = case(name)
    noised = c.noised()
    sigma, x_t = stock_noise(c, noised)
    with torch.inference_mode(False), torch.no_grad():
        with borrowed(c.patcher) as denoiser:
            output = denoiser.predict(noised.x_t, noised.sigma, c.conditioning)
        args = comfy.samplers.cond_cat(c.conditioning, device=x_t.device)
        stock = c.patcher.model.apply_model(x_t, sigma, **args, transformer_options={})
    rows = [
        c.sampling.calculate_denoised(sigma[i : i + 1], output[i : i + 1], x_t[i : i + 1]) for i in (0, 1)
    ]
    assert relative(torch.cat(rows), stock) < 1e-5


@every_family
def test_a_batch_is_the_same_as_its_samples_one_by_one(name: str) -> None:
    c = case(name)
    noised = c.noised()
    with torch.inference_mode(False), torch.no_grad(), borrowed(c.patcher) as denoiser:
        both = denoiser.predict(noised.x_t, noised.sigma, c.conditioning)
        for i in (0, 1):
            one = slice(i, i + 1)
            alone = denoiser.predict(noised.x_t[one], noised.sigma[one], c.conditioning[one])
            assert relative(both[one], alone) < 1e-5


def stock_noise(c: Case, noised: Noised) -> tuple[Tensor, Tensor]:
    """σ and x_t in the stock model's own convention."""
    sigma = noised.sigma
    if isinstance(c.sampling, comfy.model_sampling.COSMOS_RFLOW):
        sigma = sigma / (1 - sigma)
    noise = torch.randn(c.x_0.shape, generator=torch.Generator().manual_seed(7))
    columns = sigma.view(-1, *[1] * (c.x_0.ndim - 1))
    return sigma, c.sampling.noise_scaling(columns, noise, c.x_0)


@pytest.mark.parametrize(
    ("name", "prediction", "steps", "shift"),
    [
        ("sd15", "eps", 1000, 1.0),
        ("sd2_v", "v", 1000, 1.0),
        ("kolors", "eps", 1100, 1.0),
        ("sdxl_edm", "affine", 1000, 1.0),
        ("sd3", "flow", 1000, 3.0),
        ("flux1", "flow", 10000, 3.1582),
        ("z_image", "flow", 1000, 3.0),
        ("cosmos_predict2", "flow", 1000, 1.0),
    ],
)
def test_noise_process_is_read_from_the_model(name: str, prediction: str, steps: int, shift: float) -> None:
    process = noise_process(case(name).sampling)
    assert process.prediction == prediction
    assert len(process.sigmas) == steps
    assert process.shift == pytest.approx(shift, abs=1e-4)
    assert (process.sigmas.diff() > 0).all()


@pytest.mark.parametrize("name", ["sd15", "sd2_v", "sdxl", "sdxl_v", "kolors", "pixart"])
def test_affine_target_agrees_with_the_formulas_of_eps_and_v(name: str) -> None:
    c = case(name)
    noised = c.noised()
    process = AffineProcess(prediction="affine", sigmas=c.sampling.sigmas, sampling=c.sampling)
    noise = torch.randn(c.x_0.shape, generator=torch.Generator().manual_seed(7))
    columns = noised.sigma.view(-1, *[1] * (c.x_0.ndim - 1))
    assert relative(process.target(c.x_0, noise, columns), noised.target) < 1e-4


def sampling_of(model_type: comfy.model_base.ModelType) -> Any:
    config = comfy.supported_models.SD15({})
    return comfy.model_base.model_sampling(config, model_type)


def test_ddpm_v_prediction_gets_the_input_that_the_network_was_trained_on() -> None:
    sampling = sampling_of(comfy.model_base.ModelType.V_PREDICTION_DDPM)
    process = noise_process(sampling)
    x_0, noise = torch.randn(2, 2, 4, 8, 8)
    noised = add_noise(process, x_0, noise, process.sigmas[[200, 800]])
    s = noised.sigma.view(-1, 1, 1, 1)
    alpha_bar = 1 / (1 + s**2)
    network_input = raw_output_sampling(sampling).calculate_input(noised.sigma, noised.x_t)
    assert torch.allclose(network_input, alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise, atol=1e-5)
    x_0_again = sampling.calculate_denoised(noised.sigma, noised.target, network_input)
    assert torch.allclose(x_0_again, x_0, atol=1e-5)


def test_a_sampling_that_a_node_put_on_the_model_is_the_one_that_is_trained_for() -> None:
    c = case("sd3")
    shifted = comfy.model_base.model_sampling(c.patcher.model.model_config, comfy.model_base.ModelType.FLOW)
    shifted.set_parameters(shift=5.0)
    patched = c.patcher.clone()
    patched.add_object_patch("model_sampling", shifted)
    for patcher, shift in ((patched, 5.0), (c.patcher, 3.0)):
        with torch.inference_mode(False), borrowed(patcher) as denoiser:
            assert denoiser.process.shift == shift


@pytest.mark.parametrize("kind", ["IMG_TO_IMG", "IMG_TO_IMG_FLOW"])
def test_models_that_know_no_noise_are_refused(kind: str) -> None:
    with pytest.raises(ModelError, match="removes no noise"):
        noise_process(sampling_of(comfy.model_base.ModelType[kind]))


def test_a_parameterisation_nobody_listed_trains_when_x_0_is_affine_in_the_output() -> None:
    class Unheard(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
            s = comfy.model_sampling.reshape_sigma(sigma, x.ndim)
            return x / (1 + s) + 0.5 * s * output

    process = noise_process(Unheard())
    x_0, noise = torch.randn(2, 2, 4, 8, 8)
    noised = add_noise(process, x_0, noise, process.sigmas[[200, 800]])
    assert torch.allclose(
        Unheard().calculate_denoised(noised.sigma, noised.target, noised.x_t), x_0, atol=1e-4
    )


def test_a_parameterisation_that_is_not_affine_is_refused() -> None:
    class Unheard(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
            return x - output**2

    with pytest.raises(ModelError, match="prediction type"):
        noise_process(Unheard())


# ---------------------------------------------------------------- gradients


@every_family
@pytest.mark.parametrize("targets", ["attention", "all linear"])
def test_lora_gradients_equal_the_oracles(name: str, targets: str) -> None:
    c = case(name)
    with adapted(c, targets) as (denoiser, adapter):
        right = c.gradients(denoiser, adapter, oracle())
        assert right.isfinite().all()
        assert (right != 0).float().mean() > 0.8  # a last block has text layers that lead nowhere
        assert relative(c.gradients(denoiser, adapter), right) < 1e-5


@pytest.mark.parametrize("name", ["flux1", "ltxv", "unheard_of"])
def test_finite_differences_in_float64_prove_the_oracle(name: str) -> None:
    c = Case(name, torch.float64)
    with adapted(c) as (denoiser, adapter):
        for p in adapter.parameters():
            p.data = p.data.double()
        gradient = c.gradients(denoiser, adapter, oracle())
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1)).double()
        slope = difference_quotient(adapter, direction, lambda: loss(denoiser, c), 1e-3)
        assert slope == pytest.approx(float(gradient @ direction), rel=1e-3)


def loss(denoiser: HostDenoiser, c: Case) -> float:
    with torch.no_grad():
        return float(c.loss(denoiser))


def difference_quotient(adapter: Adapter, direction: Tensor, f: Callable[[], float], epsilon: float) -> float:
    def move(by: float) -> None:
        parts = direction.split([p.numel() for p in adapter.parameters()])
        for p, d in zip(adapter.parameters(), parts, strict=True):
            p.data += by * d.view(p.shape)

    move(epsilon)
    above = f()
    move(-2 * epsilon)
    below = f()
    move(epsilon)
    return (above - below) / (2 * epsilon)


@pytest.mark.parametrize("name", ["flux1", "chroma", "hunyuan_video", "ltxv"])
def test_without_the_quirk_of_the_row_autograd_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows say no more than is needed."""
    nothing = lambda *modules: contextlib.nullcontext()  # noqa: E731
    monkeypatch.setattr("in_graph_lora.trainer.host.model.out_of_place", nothing)
    c = case(name)
    with adapted(c) as (denoiser, adapter):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            c.gradients(denoiser, adapter)
        with checkpointed(denoiser.blocks, 1), pytest.raises(ModelError, match="overwrites values"):
            c.gradients(denoiser, adapter)


# ---------------------------------------------------------------- nothing else changes


@every_family
def test_untrained_adapter_leaves_output_bitwise_unchanged(name: str) -> None:
    c = case(name)
    noised = c.noised()
    with torch.inference_mode(False), borrowed(c.patcher) as denoiser:
        with torch.no_grad():
            before = denoiser.predict(noised.x_t, noised.sigma, c.conditioning)
        with injected(denoiser.net, AdapterConfig(rank=2, targets="all linear"), seed=1):
            during = denoiser.predict(noised.x_t, noised.sigma, c.conditioning)
            assert during.requires_grad
            assert torch.equal(before, during)


@every_family
def test_a_model_comes_back_as_the_same_objects_with_the_same_bytes(name: str) -> None:
    c = case(name)
    model = c.patcher.model
    before, bytes_before = identities(model), weight_hash(model)
    kernels = {n: getattr(comfy_kitchen, n) for n in comfy_kitchen.__all__}
    with contextlib.suppress(KeyboardInterrupt), adapted(c) as (denoiser, adapter):
        with checkpointed(denoiser.blocks, 1):
            c.gradients(denoiser, adapter)
        raise KeyboardInterrupt
    assert identities(model) == before
    assert weight_hash(model) == bytes_before
    assert all(p.grad is None for p in model.parameters())
    assert not any("forward" in vars(m) for m in model.modules())
    assert not mm.in_training
    assert kernels == {n: getattr(comfy_kitchen, n) for n in kernels}


# ---------------------------------------------------------------- layers and blocks


@every_family
def test_targets_reach_every_block(name: str) -> None:
    net = case(name).patcher.model.diffusion_model
    with torch.inference_mode(False), borrowed(case(name).patcher) as denoiser:
        names = {module: n for n, module in net.named_modules()}
        attention, more = (set(target_layers(net, t)) for t in ("attention", "attention+feed-forward"))
        blocks = [b for b in denoiser.blocks if type(b).__name__ != "ResBlock"]
        assert blocks
        for block in blocks:
            inside = f"{names[block]}."
            assert any(layer.startswith(inside) for layer in more), f"no layer in {inside}"
            if any("attn" in n or "attention" in n for n, _ in block.named_modules()):
                assert any(layer.startswith(inside) for layer in attention), f"no attention in {inside}"


def test_a_class_that_no_row_names_is_unlisted_and_its_blocks_are_found() -> None:
    patcher = case("unheard_of").patcher
    assert model_family(patcher) is UNLISTED
    with torch.inference_mode(False), borrowed(patcher) as denoiser:
        assert [type(b).__name__ for b in denoiser.blocks] == ["UnheardOfBlock"] * 3


def test_variants_of_a_family_have_its_row() -> None:
    variants = {
        "FluxSchnell": "flux1",
        "SSD1B": "sdxl_base_v1-0",
        "WAN22_T2V": "wan2.2_5b",
        "PixArtSigma": "pixart",
        "Flux2": "flux2",
        "ZImage": "z_image",
    }
    for config, family in variants.items():
        assert family_of(getattr(comfy.supported_models, config)).name == family


@pytest.mark.parametrize("shape", [(1, 16, 16), (13, 16, 24)])
def test_flux_shift_of_ltx_is_that_of_comfyuis_nodes(shape: tuple[int, int, int]) -> None:
    """μ from the latent's own pixels, all frames counted, on LTX-Video's line."""
    c = Case("ltxv")
    latent = {"samples": torch.zeros(1, 128, *shape)}
    (patched,) = ModelSamplingLTXV.execute(c.patcher, 2.05, 0.95, latent).args
    own = noise_process(patched.get_model_object("model_sampling"))
    config = ObjectiveConfig(timestep_sampling="flux_shift")
    u = torch.tensor([0.2, 0.5, 0.9])
    with torch.inference_mode(False), borrowed(c.patcher) as denoiser:
        count = latent["samples"][0, 0].numel() / denoiser.process.tokens.patch**2
        sigma = sigma_from_uniform(u, config, denoiser.process, count)
    assert torch.allclose(sigma, own.sigma(u, own.shift), rtol=1e-5)
    (steps,) = LTXVScheduler.execute(10, 2.05, 0.95, False, 0.1, latent).args
    even = torch.linspace(1, 0, 11)[1:-1]
    assert torch.allclose(own.sigma(even, flux_shift(count, denoiser.process.tokens)), steps[1:-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "patch", "pixels"),
    [("flux1", 2, 16), ("flux2", 1, 16), ("wan22_5b", 2, 32), ("ltxv", 1, 32), ("sd15", 2, 16)],
)
def test_a_token_is_what_the_network_makes_of_the_latent(name: str, patch: int, pixels: int) -> None:
    found = tokens(Case(name).patcher)
    assert (found.patch, found.pixels) == (patch, pixels)
    assert resolution_shift(3, (1024 / pixels) ** 2, found) == pytest.approx(3)
