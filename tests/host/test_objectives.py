"""Prior preservation, caption dropout, accumulation, masks and weights, on the real tiny SD 1.5.

Gradients come from the engine's own `backward_batch`; what they are compared with is put together from
`Objective.draw` and `Objective.loss`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PriorConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.batches import CachedSample, MicroBatch, same_shape_groups
from in_graph_lora.trainer.data.cache import TrainingData
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, TrainingError
from in_graph_lora.trainer.events import StepDone
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.objective import Drawn, Objective, backward_batch
from in_graph_lora.trainer.rng import stream
from in_graph_lora.trainer.runs.result import Result

from .loaded import Loaded, encoded, identities, train_engine, weight_hash, write_pictures

pytestmark = pytest.mark.slow

CLASS_PROMPT = "a photo of a figurine"
PRIORS = {
    method: PriorConfig(method=method, weight=0.5, class_prompt=CLASS_PROMPT)
    for method in ("class_images", "class_images_base_target", "output_preservation")
}
ADAPTER = AdapterConfig(rank=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four pictures, the first with a mask, and two of the class."""
    folder = write_pictures(tmp_path_factory.mktemp("instance"), [(64, 64)] * 4)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "0-masklabel.png")
    classes = write_pictures(tmp_path_factory.mktemp("class"), [(64, 64), (65, 64)])
    found = scan_folder(folder, resolution=64)
    return found.with_records((*found.records, *scan_folder(classes, resolution=64, role="class").records))


@pytest.fixture(scope="module")
def data(loaded: Loaded, dataset: Dataset) -> TrainingData:
    """Everything that any objective needs: class pictures, class prompt, empty caption, two shapes."""
    dropping = ObjectiveConfig(caption_dropout=0.5)
    with torch.inference_mode(False):
        images = encoded(
            loaded, dataset, config_for(dataset, objective=dropping, prior=PRIORS["class_images"])
        )
        texts = encoded(loaded, dataset, config_for(dataset, prior=PRIORS["output_preservation"]))
    samples = [
        replace(s, class_conditioning=t.class_conditioning)
        for s, t in zip(images.samples, texts.samples, strict=True)
    ]
    samples[2:] = [replace(s, latent=torch.cat([s.latent, s.latent], -1)) for s in samples[2:]]
    assert [s.mask is not None for s in samples] == [True, False, False, False]
    assert [len(group) for group in same_shape_groups(samples)] == [2, 2]
    return TrainingData(samples=samples, class_samples=images.class_samples)


@contextmanager
def objective(
    loaded: Loaded, *, trained: bool = False, prior: PriorConfig | None = None, **config: object
) -> Iterator[Objective]:
    """An objective on the borrowed model. trained: B is no longer zero."""
    with (
        torch.inference_mode(False),
        borrowed(loaded.model) as denoiser,
        injected(denoiser.net, ADAPTER, seed=0) as adapter,
    ):
        if trained:
            g = torch.Generator().manual_seed(1)
            for p in adapter.parameters():
                p.data = 0.1 * torch.randn(p.shape, generator=g)
        yield Objective(
            config=ObjectiveConfig(**config), prior=prior or PriorConfig(), denoiser=denoiser, adapter=adapter
        )


def draws(step: int = 0) -> torch.Generator:
    return stream(7, "noise", step)


def gradient_of(o: Objective) -> Tensor:
    """All gradients as one vector, which are then forgotten."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in o.adapter.parameters()]
    for p in o.adapter.parameters():
        p.grad = None
    return torch.cat([g.flatten() for g in parts])


def batch_loss(
    o: Objective,
    batch: Sequence[CachedSample],
    class_batch: Sequence[CachedSample] = (),
    *,
    generator: torch.Generator | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`backward_batch`, as the loop calls it."""
    return backward_batch(
        o,
        MicroBatch(batch, class_batch),
        generator or draws(),
        scale=lambda x: x * scale,
        check_interrupt=lambda: None,
    )


def part(drawn: Drawn, rows: slice) -> Drawn:
    n = drawn.noised
    return replace(
        drawn,
        noised=replace(n, x_t=n.x_t[rows], sigma=n.sigma[rows], target=n.target[rows]),
        conditioning=drawn.conditioning[rows],
        weight=drawn.weight[rows],
        threshold=drawn.threshold[rows],
    )


def close(a: Tensor, b: Tensor) -> bool:
    assert b.abs().max() > 0
    return bool((a - b).norm() < 1e-5 * b.norm())


# --- prior preservation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_with_class_images_the_loss_is_the_instance_mean_plus_w_times_the_class_mean(loaded, data, weight):
    prior = replace(PRIORS["class_images"], weight=weight)
    with objective(loaded, trained=True, prior=prior, masked=False) as o:
        total = batch_loss(o, data.samples, data.class_samples)
        by_engine = gradient_of(o)
        generator = draws()
        parts = [
            torch.cat([o.loss(o.draw(group, generator)) for group in same_shape_groups(batch)])
            for batch in (data.samples, data.class_samples)
        ]
        by_hand = parts[0].mean() + weight * parts[1].mean()
        by_hand.backward()
        assert [len(p) for p in parts] == [4, 2]
        assert torch.allclose(total, by_hand.detach(), rtol=1e-6)
        assert close(by_engine, gradient_of(o))


def test_the_loss_of_a_class_picture_is_the_squared_distance_from_its_own_noise(loaded, data):
    with objective(loaded, trained=True, prior=PRIORS["class_images"]) as o, torch.no_grad():
        drawn = o.draw(data.class_samples, draws())
        noised = drawn.noised
        eps = (noised.x_t - torch.stack([s.latent for s in data.class_samples])) / noised.sigma.view(
            -1, 1, 1, 1
        )
        assert torch.allclose(noised.target, eps, atol=1e-3)
        output = o.denoiser.predict(noised.x_t, noised.sigma, [s.conditioning for s in data.class_samples])
        assert torch.allclose(o.loss(drawn), (output - noised.target).square().mean((1, 2, 3)))


@pytest.mark.parametrize("method", PRIORS)
def test_weight_0_gives_the_gradients_of_the_instance_alone(loaded, data, method):
    kept = data.class_samples if PRIORS[method].uses_pictures else ()
    with objective(loaded, trained=True) as o:
        alone = batch_loss(o, data.samples)
        expected = gradient_of(o)
        off = replace(o, prior=replace(PRIORS[method], weight=0.0))
        assert torch.equal(batch_loss(off, data.samples, kept), alone)
        assert torch.equal(gradient_of(off), expected)


@pytest.mark.parametrize("method", ["class_images_base_target", "output_preservation"])
def test_an_untrained_adapter_is_at_the_base_so_its_prior_adds_exactly_0(loaded, data, method):
    kept = data.class_samples if PRIORS[method].uses_pictures else ()
    with objective(loaded) as o:
        alone = batch_loss(o, data.samples)
        expected = gradient_of(o)
        both = replace(o, prior=PRIORS[method])
        assert torch.equal(batch_loss(both, data.samples, kept), alone)
        assert torch.equal(gradient_of(both), expected)


@pytest.mark.parametrize("method", PRIORS)
def test_a_trained_adapter_is_away_from_the_base_so_its_prior_adds_something(loaded, data, method):
    kept = data.class_samples if PRIORS[method].uses_pictures else ()
    with objective(loaded, trained=True) as o:
        alone = batch_loss(o, data.samples)
        expected = gradient_of(o)
        both = replace(o, prior=PRIORS[method])
        assert batch_loss(both, data.samples, kept) > alone
        assert not torch.allclose(gradient_of(both), expected, rtol=1e-3)


def test_output_preservation_is_the_distance_from_the_untouched_model_at_the_class_prompt(loaded, data):
    group = data.samples[:2]
    with objective(loaded, trained=True, prior=PRIORS["output_preservation"]) as o, torch.no_grad():
        noised = o.draw(group, draws()).noised
        prompt = [s.class_conditioning for s in group]
        with_adapter = o.denoiser.predict(noised.x_t, noised.sigma, prompt)
        ours = o.preservation_loss(o.draw(group, draws()), group)
    with torch.inference_mode(False), borrowed(loaded.model) as denoiser, torch.no_grad():
        untouched = denoiser.predict(noised.x_t, noised.sigma, prompt)
    assert torch.equal(ours, (with_adapter - untouched).square().mean((1, 2, 3)))
    assert (ours > 0).all()


def test_the_class_prompt_is_its_own_condition(data):
    sample = data.samples[0]
    contexts = [c["c_crossattn"].cond for c in (sample.conditioning, sample.class_conditioning, sample.empty)]
    assert not any(torch.equal(a, b) for a, b in zip(contexts, contexts[1:] + contexts[:1], strict=True))


# --- captions, batches, masks, weights --------------------------------------------------------------------


def config_for(dataset: Dataset, **more: object) -> TrainConfig:
    sections = {"steps": 2, "optimizer": OptimizerConfig(learning_rate=1e-3), **more}
    return TrainConfig(name="test", data=DataConfig(resolution=dataset.resolution), **sections)


def run(
    loaded: Loaded,
    dataset: Dataset,
    data: TrainingData,
    output: Path,
    emit=lambda event: None,
    **more: object,
) -> Result:
    with torch.inference_mode():
        return train_engine(loaded.model, data, config_for(dataset, adapter=ADAPTER, **more), output, emit)


def test_caption_dropout_1_trains_as_empty_captions_do(loaded, dataset, data, tmp_path):
    empty = TrainingData(samples=[replace(s, conditioning=s.empty) for s in data.samples])
    captioned = TrainingData(samples=data.samples)
    every = ObjectiveConfig(caption_dropout=1.0)
    dropped = run(loaded, dataset, captioned, tmp_path, steps=4, objective=every)
    without = run(loaded, dataset, empty, tmp_path, steps=4)
    kept = run(loaded, dataset, captioned, tmp_path, steps=4)
    assert dropped.losses == without.losses != kept.losses
    assert all(torch.equal(dropped.lora[k], without.lora[k]) for k in dropped.lora)
    assert any(not torch.equal(dropped.lora[k], kept.lora[k]) for k in dropped.lora)


def test_caption_dropout_drops_about_its_share(loaded, data):
    with objective(loaded, caption_dropout=0.25) as o:
        sample = data.samples[0]
        drawn = o.draw([sample] * 400, draws())
        dropped = sum(c is sample.empty for c in drawn.conditioning)
    assert 70 < dropped < 130


def test_a_batch_of_4_has_the_gradients_of_2_accumulated_batches_of_2(loaded, data):
    """As the loop runs them: one generator for all batches of a step, and two shapes that draw in turn."""
    with objective(loaded, trained=True) as o:
        whole = batch_loss(o, data.samples)
        expected = gradient_of(o)
        generator = draws()
        halves = [
            batch_loss(o, data.samples[rows], generator=generator, scale=0.5)
            for rows in (slice(0, 2), slice(2, 4))
        ]
        assert torch.allclose(torch.stack(halves).mean(), whole, rtol=1e-6)
        assert close(gradient_of(o), expected)


def test_4_samples_of_one_shape_have_the_gradients_of_each_half_of_the_same_draws(loaded, data):
    group = [*data.samples[:2], *data.samples[:2]]
    with objective(loaded, trained=True, masked=False) as o:
        drawn = o.draw(group, draws())
        whole = o.loss(drawn)
        whole.mean().backward()
        expected = gradient_of(o)
        halves = [o.loss(part(drawn, rows)) for rows in (slice(0, 2), slice(2, 4))]
        for half in halves:
            (half.mean() / 2).backward()
        assert torch.allclose(torch.cat(halves), whole, rtol=1e-5)
        assert close(gradient_of(o), expected)


def outside(drawn: Drawn) -> Tensor:
    """Another target, which differs outside the mask only."""
    assert drawn.mask is not None
    return drawn.noised.target + 5.0 * (drawn.mask == drawn.mask.min())


def test_a_masked_loss_with_unmasked_weight_0_ignores_what_lies_outside(loaded, data):
    with objective(loaded, trained=True, unmasked_weight=0.0) as o:
        drawn = o.draw(data.samples[:1], draws())
        assert drawn.mask is not None
        assert drawn.mask.shape == (1, 1, 8, 8)
        assert torch.equal(drawn.mask[0, 0, :, :4], torch.ones(8, 4))
        assert not drawn.mask[0, 0, :, 4:].any()
        plain = o.loss(drawn)
        plain.sum().backward()
        expected = gradient_of(o)
        changed = o.loss(drawn, outside(drawn))
        changed.sum().backward()
        assert torch.equal(changed, plain)
        assert torch.equal(gradient_of(o), expected)


def test_unmasked_weight_is_what_the_outside_counts(loaded, data):
    losses = {}
    for weight in (0.0, 0.1, 1.0):
        with objective(loaded, trained=True, unmasked_weight=weight) as o, torch.no_grad():
            losses[weight] = o.loss(o.draw(data.samples[:1], draws()))
    with objective(loaded, trained=True, masked=False) as o, torch.no_grad():
        unmasked = o.loss(o.draw(data.samples[:1], draws()))
    assert 0 < losses[0.0] < losses[0.1] < unmasked
    assert torch.allclose(losses[0.1], losses[0.0] + 0.1 * (unmasked - losses[0.0]), rtol=1e-5)
    assert torch.equal(losses[1.0], unmasked)


def test_a_picture_without_a_mask_counts_whole_beside_one_with_a_mask(loaded, data):
    with objective(loaded, trained=True, unmasked_weight=0.0) as o, torch.no_grad():
        masked = o.loss(o.draw(data.samples[:2], draws()))
        plain = replace(o, config=replace(o.config, masked=False))
        unmasked = plain.loss(plain.draw(data.samples[:2], draws()))
    assert masked[0] < unmasked[0]
    assert masked[1] == unmasked[1]


def test_weight_2_doubles_the_loss_of_that_picture_alone(loaded, data):
    group = data.samples[:2]
    with objective(loaded, trained=True) as o, torch.no_grad():
        once = o.loss(o.draw(group, draws()))
        twice = o.loss(o.draw([replace(group[0], weight=2.0), group[1]], draws()))
    assert torch.equal(twice, once * torch.tensor([2.0, 1.0]))


def test_the_weight_in_metadata_reaches_the_sample(loaded, tmp_path):
    folder = write_pictures(tmp_path / "in", [(64, 64), (64, 64)])
    (folder / "metadata.csv").write_text("file_name,weight\n1.png,2\n")
    found = scan_folder(folder, resolution=64)
    with torch.inference_mode(False):
        samples = encoded(loaded, found, config_for(found)).samples
    assert [s.weight for s in samples] == [1.0, 2.0]


# --- a loss that is not a number --------------------------------------------------------------------------


def test_three_nan_losses_in_a_row_stop_the_run_and_keep_what_was_learned(loaded, dataset, data, tmp_path):
    before = weight_hash(loaded.model.model), identities(loaded.model.model)
    poisoned = TrainingData(samples=copy.deepcopy(data.samples))
    seen: list[StepDone] = []

    def poison_after_2(event: object) -> None:
        if isinstance(event, StepDone):
            seen.append(event)
            if event.step == 2:
                for sample in poisoned.samples:
                    sample.latent.fill_(torch.nan)

    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=0)
    with pytest.raises(
        TrainingError, match=r"not a number in 3 steps in a row \(steps 3 to 5\); lower learning"
    ):
        run(loaded, dataset, poisoned, tmp_path / "a", emit=poison_after_2, steps=50, optimizer=optimizer)
    assert [e.skipped for e in seen] == [False, False, True, True, True]
    assert (weight_hash(loaded.model.model), identities(loaded.model.model)) == before

    (saved,) = tmp_path.rglob("step_000005.safetensors")
    assert not (tmp_path / "a" / "loras").exists()
    two = run(
        loaded, dataset, TrainingData(samples=data.samples), tmp_path / "b", steps=2, optimizer=optimizer
    )
    kept = load_file(saved)
    assert kept.keys() == two.lora.keys()
    assert all(torch.equal(kept[k], two.lora[k]) for k in kept)


def test_a_single_nan_loss_is_skipped_and_the_run_goes_on(loaded, dataset, data, tmp_path):
    samples = copy.deepcopy(data.samples)
    clean = [s.latent.clone() for s in samples]
    seen: list[bool] = []

    def poison_once(event: object) -> None:
        if isinstance(event, StepDone):
            seen.append(event.skipped)
            for sample, latent in zip(samples, clean, strict=True):
                sample.latent.copy_(latent if event.step != 1 else torch.full_like(latent, torch.nan))

    result = run(loaded, dataset, TrainingData(samples=samples), tmp_path, emit=poison_once, steps=4)
    assert seen == [False, True, False, False]
    assert all(t.isfinite().all() for t in result.lora.values())


def test_the_gradient_is_that_of_the_loss_function_that_is_given(loaded, data):
    found = {}
    with objective(loaded, trained=True, loss="l1") as plain:
        batch = data.samples[:2]
        batch_loss(plain, batch)
        found["l1"] = gradient_of(plain)
        given = replace(plain, config=ObjectiveConfig(own_loss="own"))
        functions = {
            "own l1": lambda p, t, sigma: (p - t).abs(),
            "by noise": lambda p, t, sigma: sigma.view(-1, 1, 1, 1) * (p - t).abs(),
        }
        for name, function in functions.items():
            batch_loss(replace(given, own_loss=function), batch)
            found[name] = gradient_of(plain)
        assert torch.equal(found["l1"], found["own l1"])
        assert not torch.allclose(found["l1"], found["by noise"])
        assert found["by noise"].abs().max() > 0
        wrong = {
            "own' gave .* for a prediction of": lambda p, t, sigma: (p - t).abs().mean(),
            "without a gradient": lambda p, t, sigma: (p.detach() - t).abs(),
        }
        for why, function in wrong.items():
            with pytest.raises(ConfigError, match=why):
                batch_loss(replace(given, own_loss=function), batch)
