from __future__ import annotations

import importlib.util
import json
import math

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.config import OPTIMIZERS, OptimizerConfig, TrainConfig
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.optim import RATE_FOUND, check_optimizer, make_optimizer, make_schedule
from in_graph_lora.trainer.updater import Updater

PACKAGES = {
    "lion": "lion_pytorch",
    "prodigy": "prodigyopt",
    "schedule_free_adamw": "schedulefree",
    "adamw8bit": "bitsandbytes",
    "lion8bit": "bitsandbytes",
    "prodigy_plus": "prodigyplus",
    **dict.fromkeys(("came", "ademamix", "adan", "adopt", "stable_adamw"), "pytorch_optimizer"),
}


def _group(lr: float = 1e-2) -> list[dict]:
    return [{"params": [nn.Parameter(torch.ones(4, 4))], "lr": lr}]


def _trace(config: OptimizerConfig, steps: int) -> list[float]:
    optimizer = make_optimizer(_group(config.learning_rate), config)
    schedule = make_schedule(optimizer, config, steps)
    trace = []
    for _ in range(steps):
        trace.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return trace


def test_cosine_with_warm_up_follows_its_formula():
    trace = _trace(OptimizerConfig(learning_rate=1.0, warmup_steps=4), 20)
    assert trace[:4] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert trace[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 16)) for i in range(16)])


def test_constant_warms_up_too():
    trace = _trace(OptimizerConfig(learning_rate=1.0, schedule="constant", warmup_steps=2), 5)
    assert trace == pytest.approx([0, 0.5, 1, 1, 1])


@pytest.mark.parametrize("schedule", ["linear", "polynomial"])
def test_linear_and_polynomial_fall_to_the_end(schedule):
    trace = _trace(OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=0), 10)
    assert trace == pytest.approx([1 - i / 10 for i in range(10)], abs=1e-4)  # diffusers ends at 1e-7


def test_restarts_restart():
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine_with_restarts", cycles=2, warmup_steps=0)
    trace = _trace(config, 10)
    assert trace[5] == pytest.approx(1.0)
    assert trace[4] < 0.2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_lowers_a_quadratic_or_names_its_package(name):
    config = OptimizerConfig(
        name=name, learning_rate=1.0 if name in RATE_FOUND else 1e-2, weight_decay=0, warmup_steps=0
    )
    if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
        with pytest.raises(ConfigError, match="pip install"):
            check_optimizer(config)
        return
    updater = Updater(_group(config.learning_rate), TrainConfig(optimizer=config), 200, fp16=False)
    (parameter,) = updater.parameters
    first = parameter.square().sum().item()
    for _ in range(100):
        loss = parameter.square().sum()
        loss.backward()
        updater.step(loss.detach())
    with updater.weights_to_save():
        assert parameter.square().sum().item() < 0.9 * first


def _states_of_twelve_steps(config: OptimizerConfig, saved_at: int = 0) -> dict[str, Tensor]:
    """Weights and state in the end. saved_at: a step after which all goes through a file, as in a run."""

    def begun() -> Updater:
        g = torch.Generator().manual_seed(0)
        large, small = (torch.randn(shape, generator=g) for shape in ((16, 512), (4, 4)))
        groups = [{"params": [nn.Parameter(large), nn.Parameter(small)], "lr": config.learning_rate}]
        return Updater(groups, TrainConfig(optimizer=config), 12, fp16=False)

    updater = begun()
    for step in range(12):
        loss = sum((p - i).square().mean() for i, p in enumerate(updater.parameters))
        loss.backward()
        updater.step(loss.detach())
        if step + 1 == saved_at:
            tensors, numbers = updater.state_dict()
            file = safetensors.torch.save({k: t.contiguous() for k, t in tensors.items()})
            weights = [p.detach().clone() for p in updater.parameters]
            updater = begun()
            for p, weight in zip(updater.parameters, weights, strict=True):
                p.data = weight
            updater.load_state_dict(safetensors.torch.load(file), json.loads(json.dumps(numbers)))
    weights = {f"weight.{i}": p.detach() for i, p in enumerate(updater.parameters)}
    return weights | updater.state_dict()[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_goes_on_from_its_saved_state_bit_for_bit(name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    config = OptimizerConfig(name=name, learning_rate=1.0 if name in RATE_FOUND else 1e-2)
    straight, resumed = _states_of_twelve_steps(config), _states_of_twelve_steps(config, 5)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    if name.endswith("8bit"):
        kept = [t for key, t in resumed.items() if key.startswith("optimizer.0.")]
        assert sum(t.nbytes for t in kept) < 0.5 * 4 * 16 * 512 * (1 if name == "lion8bit" else 2)


@pytest.mark.parametrize("name", RATE_FOUND)
def test_what_finds_its_rate_is_refused_a_small_one(name):
    pytest.importorskip(PACKAGES[name])
    with pytest.raises(ConfigError, match=f"{name} finds the learning rate itself.*set learning_rate to 1"):
        check_optimizer(OptimizerConfig(name=name))


def test_muon_is_torchs_for_matrices_and_adamw_for_all_else(monkeypatch):
    config = OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=0, schedule="constant")
    shapes = ((8, 16), (16,), (4, 2, 3, 3), (2, 2))

    def after_three_steps(made) -> list[Tensor]:
        g = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape, generator=g)) for shape in shapes]
        rates = (1e-2, 5e-3)
        groups = [{"params": parameters[:3], "lr": rates[0]}, {"params": parameters[3:], "lr": rates[1]}]
        optimizer = made(groups)
        for _ in range(3):
            sum(p.square().sum() for p in parameters).backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in parameters]

    decay = config.weight_decay
    ours = after_three_steps(lambda groups: make_optimizer(groups, config))
    adamw = after_three_steps(lambda groups: torch.optim.AdamW(groups, weight_decay=decay))
    matrices = lambda groups: [  # noqa: E731
        {**g, "params": [p for p in g["params"] if p.ndim == 2]} for g in groups
    ]
    muon = after_three_steps(
        lambda groups: torch.optim.Muon(matrices(groups), weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    )
    assert [torch.equal(a, b) for a, b in zip(ours, muon, strict=True)] == [True, False, False, True]
    assert [torch.equal(a, b) for a, b in zip(ours, adamw, strict=True)] == [False, True, True, False]
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"needs torch 2\.9 or newer and this is .*; update torch, or"):
        check_optimizer(config)


def test_a_rate_that_a_schedule_changes_reaches_both_halves_of_muon_after_a_resume():
    config = TrainConfig(optimizer=OptimizerConfig(name="muon", learning_rate=1.0, warmup_steps=0))
    shapes = ((4, 4), (4,))

    def begun() -> Updater:
        groups = [{"params": [nn.Parameter(torch.ones(s)) for s in shapes], "lr": 1.0}]
        return Updater(groups, config, 4, fp16=False)

    def step(updater: Updater) -> list[float]:
        before = [p.detach().clone() for p in updater.parameters]
        sum(p.square().sum() for p in updater.parameters).backward()
        updater.step(torch.tensor(1.0))
        return [(p - b).abs().max().item() for p, b in zip(updater.parameters, before, strict=True)]

    updater = begun()
    first = step(updater)
    resumed = begun()
    resumed.load_state_dict(*updater.state_dict())
    for _ in range(2):
        step(resumed)
    assert all(last < 0.3 * f for last, f in zip(step(resumed), first, strict=True))


def test_adafactor_with_a_rate_for_adamw_is_refused():
    with pytest.raises(ConfigError, match="set learning_rate to 0.01"):
        check_optimizer(OptimizerConfig(name="adafactor"))


def test_a_nan_loss_leaves_the_weights_alone():
    updater = Updater(_group(), TrainConfig(), 10, fp16=False)
    (parameter,) = updater.parameters
    before = parameter.detach().clone()
    (parameter.sum() * float("nan")).backward()
    loss, _, done = updater.step(torch.tensor(float("nan")))
    assert math.isnan(loss)
    assert not done
    assert torch.equal(parameter, before)
    assert parameter.grad is None


def test_gradients_are_clipped_to_the_norm():
    config = TrainConfig(optimizer=OptimizerConfig(max_grad_norm=0.5))
    updater = Updater(_group(), config, 10, fp16=False)
    (parameter,) = updater.parameters
    (parameter.sum() * 100).backward()
    seen: list[float] = []
    updater.optimizer.register_step_pre_hook(lambda *_: seen.append(parameter.grad.norm().item()))
    _, norm, _ = updater.step(torch.tensor(1.0))
    assert norm == pytest.approx(400.0)
    assert seen == pytest.approx([0.5], rel=1e-4)


def test_saved_weights_are_the_moving_average_and_training_goes_on_with_its_own():
    config = TrainConfig(optimizer=OptimizerConfig(ema_decay=0.5, warmup_steps=0, learning_rate=0.1))
    updater = Updater(_group(0.1), config, 10, fp16=False)
    (parameter,) = updater.parameters
    for _ in range(5):
        loss = parameter.square().sum()
        loss.backward()
        updater.step(loss.detach())
    own = parameter.detach().clone()
    with updater.weights_to_save():
        assert not torch.equal(parameter, own)
    assert torch.equal(parameter, own)
