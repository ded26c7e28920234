"""Formulas against golden values and against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

from in_graph_lora.trainer.config import ObjectiveConfig
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.loss import (
    check_weighting,
    element_loss,
    huber_threshold,
    loss_weight,
    sample_loss,
)
from in_graph_lora.trainer.noise import NoiseProcess, add_noise
from in_graph_lora.trainer.rng import stream
from in_graph_lora.trainer.timesteps import draw_sigma, flux_shift, sigma_from_uniform


def _scheduler(**options: object) -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **options)


def _discrete(prediction: str) -> NoiseProcess:
    alphas = _scheduler().alphas_cumprod
    return NoiseProcess(prediction=prediction, sigmas=((1 - alphas) / alphas).sqrt())


def _flow(shift: float = 1.0) -> NoiseProcess:
    return NoiseProcess(prediction="flow", sigmas=torch.linspace(0.001, 1, 1000), shift=shift)


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    g = stream(0, "test")
    return torch.randn(3, 4, 8, 8, generator=g), torch.randn(3, 4, 8, 8, generator=g)


@pytest.mark.parametrize(("prediction", "name"), [("eps", "epsilon"), ("v", "v_prediction")])
def test_discrete_noising_and_target_equal_diffusers(prediction, name):
    scheduler, process = _scheduler(prediction_type=name), _discrete(prediction)
    x_0, noise = _pair()
    t = torch.tensor([10, 500, 999])
    noised = add_noise(process, x_0, noise, process.sigmas[t])
    scale = (1 + noised.sigma**2).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(noised.x_t / scale, scheduler.add_noise(x_0, noise, t), rtol=1e-5, atol=1e-5)
    target = noise if prediction == "eps" else scheduler.get_velocity(x_0, noise, t)
    torch.testing.assert_close(noised.target, target, rtol=1e-5, atol=1e-5)


def test_flow_target_is_the_velocity_of_the_path():
    x_0, noise = _pair()
    sigma = torch.tensor([0.1, 0.5, 0.9])
    noised = add_noise(_flow(), x_0, noise, sigma)
    later = add_noise(_flow(), x_0, noise, sigma + 1e-3)
    torch.testing.assert_close((later.x_t - noised.x_t) / 1e-3, noised.target, rtol=1e-3, atol=1e-3)


def test_input_perturbation_changes_the_input_and_not_the_target():
    x_0, noise = _pair()
    sigma = torch.tensor([1.0, 2.0, 3.0])
    plain = add_noise(_discrete("eps"), x_0, noise, sigma)
    perturbed = add_noise(_discrete("eps"), x_0, noise, sigma, noise + 0.1)
    assert torch.equal(plain.target, perturbed.target)
    torch.testing.assert_close(
        perturbed.x_t - plain.x_t, (0.1 * sigma).view(-1, 1, 1, 1).expand_as(x_0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("t", "eps", "v"), [(100, 0.591445, 0.528884), (500, 1.0, 0.276332), (10, 0.048306, 0.047843)]
)
def test_min_snr_has_its_golden_values(t, eps, v):
    config = ObjectiveConfig(weighting="min_snr", min_snr_gamma=5)
    for prediction, expected in (("eps", eps), ("v", v)):
        process = _discrete(prediction)
        weight = loss_weight(config, process, process.sigmas[[t]])
        assert weight.item() == pytest.approx(expected, rel=2e-5)


def test_snr_equals_diffusers():
    process, t = _discrete("eps"), torch.tensor([0, 1, 500, 999])
    torch.testing.assert_close(process.snr(process.sigmas[t]), compute_snr(_scheduler(), t))


def test_debiased_forms_for_v_differ_by_a_square_root():
    process = _discrete("v")
    sigma = process.sigmas[[400]]
    kohya = loss_weight(ObjectiveConfig(weighting="debiased_kohya"), process, sigma)
    onetrainer = loss_weight(ObjectiveConfig(weighting="debiased_onetrainer"), process, sigma)
    torch.testing.assert_close(kohya, onetrainer**2)


@pytest.mark.parametrize("scheme", ["sigma_sqrt", "cosmap"])
def test_flow_weightings_equal_diffusers(scheme):
    sigma = torch.tensor([0.05, 0.5, 0.95])
    ours = loss_weight(ObjectiveConfig(weighting=scheme), _flow(), sigma)
    torch.testing.assert_close(ours, compute_loss_weighting_for_sd3(scheme, sigma))


@pytest.mark.parametrize(("prediction", "weighting"), [("flow", "min_snr"), ("eps", "cosmap")])
def test_a_weighting_that_is_not_defined_is_refused(prediction, weighting):
    process = _flow() if prediction == "flow" else _discrete(prediction)
    with pytest.raises(ConfigError, match=f"{weighting!r} is not defined"):
        check_weighting(ObjectiveConfig(weighting=weighting), process)


def test_flux_shift_has_its_golden_values():
    for pixels, expected in ((512, 1.8776), (768, 2.3319), (1024, 3.1582)):
        assert flux_shift((pixels / 16) ** 2) == pytest.approx(expected, rel=1e-4)


def test_auto_uses_the_models_own_shift_on_flow():
    u = torch.tensor([0.25, 0.5, 0.75])
    sigma = sigma_from_uniform(u, ObjectiveConfig(), _flow(shift=3.0), tokens=4096)
    torch.testing.assert_close(sigma, 3 * u / (1 + 2 * u))


def test_resolution_shift_equals_the_models_own_at_1024_and_falls_below():
    config, u = ObjectiveConfig(timestep_sampling="resolution_shift"), torch.tensor([0.5])
    at_1024 = sigma_from_uniform(u, config, _flow(shift=3.0), tokens=4096)
    at_512 = sigma_from_uniform(u, config, _flow(shift=3.0), tokens=1024)
    assert at_1024.item() == pytest.approx(0.75)
    assert at_512.item() == pytest.approx(0.6)  # s = 3 √(1/4) = 1.5


METHODS = [
    "auto",
    "uniform",
    "logit_normal",
    "sigmoid",
    "shift",
    "resolution_shift",
    "flux_shift",
    "mode",
    "cosmap",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_every_distribution_stays_in_its_range(method, prediction):
    process = _flow(3.0) if prediction == "flow" else _discrete("eps")
    config = ObjectiveConfig(timestep_sampling=method, t_min=0.2, t_max=0.6)
    sigma = draw_sigma(process, config, 4000, 1024, stream(0, "u"))
    low, high = (0.2, 0.6) if prediction == "flow" else (process.sigmas[199], process.sigmas[600])
    assert low <= sigma.min()
    assert sigma.max() <= high
    assert sigma.dtype == torch.float32


def test_uniform_draws_every_timestep_of_a_schedule_that_has_1100():
    process = NoiseProcess(prediction="eps", sigmas=torch.arange(1.0, 1101.0))
    drawn = draw_sigma(process, ObjectiveConfig(), 40_000, 1024, stream(0, "u"))
    assert set(drawn.long().tolist()) == set(range(1, 1101))


def test_logit_normal_follows_its_mean_and_std():
    config = ObjectiveConfig(timestep_sampling="logit_normal", logit_mean=0.5, logit_std=0.7)
    logits = draw_sigma(_flow(), config, 50_000, 1024, stream(0, "u")).logit()
    assert logits.mean().item() == pytest.approx(0.5, abs=0.02)
    assert logits.std().item() == pytest.approx(0.7, abs=0.02)


def test_huber_is_quadratic_near_zero_and_linear_far_away():
    config, c = ObjectiveConfig(loss="huber"), torch.tensor([0.1])
    zero = torch.zeros(1, 1)
    near = element_loss(config, torch.full((1, 1), 1e-3), zero, c).item()
    far = element_loss(config, torch.full((1, 1), 100.0), zero, c).item()
    # (√(d² + c²) - c in fp32 is 0.1 % off here)
    assert near == pytest.approx(2 * 0.1 * ((1e-6 + 0.01) ** 0.5 - 0.1), rel=1e-5)
    assert far == pytest.approx(2 * 0.1 * (100 - 0.1), rel=1e-3)


def test_huber_schedules_start_and_end_where_sd_scripts_does():
    process = _discrete("eps")
    ends = process.sigmas[[0, 999]]
    exponential = huber_threshold(ObjectiveConfig(loss="huber", huber_schedule="exponential"), process, ends)
    assert exponential[0].item() == pytest.approx(1.0, abs=0.01)
    assert exponential[1].item() == pytest.approx(0.1, rel=0.01)
    snr = huber_threshold(ObjectiveConfig(loss="huber", huber_schedule="snr"), process, ends)
    torch.testing.assert_close(snr, 0.9 / (1 + ends) ** 2 + 0.1)


def test_a_mask_weights_elements_and_the_mean_is_over_all_of_them():
    elements = torch.ones(1, 4, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.5]]]])
    assert sample_loss(elements, mask).item() == pytest.approx(1.5 / 4)
    assert sample_loss(elements, None).item() == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timestep_sampling", "logitnormal"),
        ("t_max", 1.5),
        ("caption_dropout", -0.1),
        ("min_snr_gamma", 0),
    ],
)
def test_a_bad_objective_is_refused_with_its_name(field, value):
    with pytest.raises(ConfigError, match=field):
        ObjectiveConfig(**{field: value})


def test_a_misspelt_field_is_a_type_error():
    with pytest.raises(TypeError):
        ObjectiveConfig(min_snr_gama=5)
