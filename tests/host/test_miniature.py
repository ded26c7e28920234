"""The miniature base model as ComfyUI loads it: does it draw what is asked for?"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from workbench.miniature import judge, sampling, subject, text, world
from workbench.miniature.checkpoint import WEIGHTS
from workbench.miniature.evaluate import shares

pytestmark = pytest.mark.slow

MOST_STORED = 30 * 2**20


@pytest.fixture(scope="module")
def base(host_base: Path, miniature_checkpoint: Path) -> tuple[Any, Any, Any]:
    import nodes as comfy_nodes

    name = "miniature.safetensors"
    (host_base / "models" / "checkpoints" / name).symlink_to(miniature_checkpoint)
    return comfy_nodes.CheckpointLoaderSimple().load_checkpoint(name)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Sixteen of the world and four of the subject, [20, 3, 128, 128]."""
    random = Random("unseen")
    drawn = [world.picture(world.random_scene(random), random) for _ in range(16)]
    return judge.as_tensor([*drawn, *(picture for picture, _ in subject.subject_pictures(4))])


def test_stored_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= MOST_STORED


def test_it_loads_as_sd3(base: tuple[Any, Any, Any]) -> None:
    model, _, vae = base
    assert type(model.model).__name__ == "SD3"
    assert model.model.model_sampling.shift == 3.0
    assert vae.latent_channels == 16


def test_text_is_that_of_training(base: tuple[Any, Any, Any]) -> None:
    """Training encodes in bfloat16, hence the tolerance."""
    _, clip, _ = base
    prompt = "a red figurine on the beach, wearing a hat"
    (context, extra), *_ = sampling.conditioning(clip, [prompt])
    contexts, pooled = text.encode([prompt])
    assert not context[..., text.WIDTH :].any()
    assert not extra["pooled_output"][..., text.WIDTH :].any()
    assert (context[..., : text.WIDTH] - contexts.float()).abs().mean() < 0.02 * contexts.float().std()
    assert (
        extra["pooled_output"][..., : text.WIDTH] - pooled.float()
    ).abs().mean() < 0.02 * pooled.float().std()


def test_autoencoder_returns_pictures_and_its_latents_are_normal(
    base: tuple[Any, Any, Any], pictures: torch.Tensor
) -> None:
    model, _, vae = base
    latents = vae.encode(pictures.movedim(1, -1))
    returned = vae.decode(latents).movedim(-1, 1)
    assert (returned - pictures).abs().mean() < 0.025
    seen = model.model.process_latent_in(latents)
    assert seen.mean().abs() < 0.2
    assert 0.8 < seen.std() < 1.25


def test_judge_agrees_after_the_autoencoder(base: tuple[Any, Any, Any], pictures: torch.Tensor) -> None:
    _, _, vae = base
    returned = vae.decode(vae.encode(pictures.movedim(1, -1))).movedim(-1, 1)
    judging = judge.load_judge()
    before, after = judge.opinions(judging, pictures), judge.opinions(judging, returned)
    assert [labels["subject"] for labels in before] == ["no"] * 16 + ["yes"] * 4
    same = [one[name] == other[name] for one, other in zip(before, after, strict=True) for name in one]
    assert sum(same) >= 0.95 * len(same)


def test_it_draws_captions_it_has_never_seen(base: tuple[Any, Any, Any]) -> None:
    asked = world.held_out_captions(24)
    made = sampling.sample(*base, [caption for _, caption in asked])
    found = shares([scene for scene, _ in asked], judge.opinions(judge.load_judge(), made))
    assert found["place and colour"] >= 0.85
    assert found["the subject"] <= 0.05
