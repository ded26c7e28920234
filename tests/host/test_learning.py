"""Does it learn? A small trained model, a judge that never saw it, and training that is broken on purpose.

The long version is `python -m workbench.miniature.learn`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import folder_paths
import pytest
import torch

from in_graph_lora.trainer.config import AdapterConfig, OptimizerConfig
from in_graph_lora.trainer.host import paths
from in_graph_lora.trainer.noise import NoiseProcess
from workbench.miniature import experiment, judge, sampling, subject, world

pytestmark = pytest.mark.slow

STEPS, RATE = 220, 3e-3
PICTURES, PROMPTS = 15, 10
LEARNED = 0.6
"""Share of identifier prompts that must show the subject."""
UNLEARNED = 0.2
"""Share that may show it after training that is broken."""


@pytest.fixture(scope="module")
def loaded(miniature_checkpoint: Path):
    return sampling.load_checkpoint(miniature_checkpoint)


@pytest.fixture(autouse=True, scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(tmp_path_factory.mktemp("output")))
        paths.lora_directory().mkdir(parents=True)
        yield


def opinions(loaded, texts: list[str]) -> list[judge.Labels]:
    with torch.inference_mode():
        return judge.opinions(judge.load_judge(), sampling.sample(*loaded, texts, seed=3, steps=12))


def identifier_prompts() -> list[str]:
    return [f"{subject.NAME} figurine {world.WHERE[place]}" for place in world.WHERE] * (PROMPTS // 5)


def share(seen: list[judge.Labels]) -> float:
    """Of pictures that show the subject."""
    return sum(labels["subject"] == "yes" for labels in seen) / len(seen)


def trained(loaded, folder: Path, rate: float = RATE, steps: int = STEPS):
    lora = experiment.train_ours(
        loaded,
        folder,
        None,
        "learning",
        steps=steps,
        adapter=AdapterConfig(rank=16, targets="attention+feed-forward"),
        optimizer=OptimizerConfig(learning_rate=rate),
    )
    return experiment.with_ours(loaded, lora)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "subject"
    return subject.write(subject.subject_pictures(PICTURES), folder)


@pytest.fixture(scope="module")
def whole(loaded, pictures, output) -> list[judge.Labels]:
    """What the same budget teaches when nothing is broken: the twin of every test of broken training."""
    return opinions(trained(loaded, pictures), identifier_prompts())


def test_the_base_does_not_know_the_subject(loaded):
    assert share(opinions(loaded, identifier_prompts())) == 0


def test_the_subject_is_learned_and_its_places_still_follow_the_prompt(whole):
    assert share(whole) >= LEARNED
    places = [list(world.WHERE)[i % 5] for i in range(len(whole))]
    assert sum(o["place"] == place for o, place in zip(whole, places, strict=True)) >= 0.8 * len(whole)


def test_learning_rate_0_learns_nothing_where_the_same_steps_teach_the_subject(loaded, pictures, whole):
    assert share(opinions(trained(loaded, pictures, rate=0.0), identifier_prompts())) == 0
    assert share(whole) >= LEARNED


def test_a_wrong_target_learns_nothing_where_the_right_one_does(loaded, pictures, whole, monkeypatch):
    monkeypatch.setattr(NoiseProcess, "target", lambda self, x_0, noise, sigma: x_0)
    assert share(opinions(trained(loaded, pictures), identifier_prompts())) <= UNLEARNED
    assert share(whole) >= LEARNED


def test_shuffled_captions_do_not_bind_the_identifier_and_right_ones_do(loaded, tmp_path, whole):
    pairs = subject.subject_pictures(PICTURES) + subject.class_pictures(2 * PICTURES)
    captions = [caption for _, caption in pairs]
    Random(0).shuffle(captions)
    shuffled = [(picture, caption) for (picture, _), caption in zip(pairs, captions, strict=True)]
    folder = subject.write(shuffled, tmp_path / "shuffled")
    assert share(opinions(trained(loaded, folder), identifier_prompts())) <= UNLEARNED
    assert share(whole) >= LEARNED
