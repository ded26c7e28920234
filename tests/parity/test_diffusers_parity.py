"""The same weights, noise, timestep, text and LoRA in ComfyUI's network and in diffusers': same gradients.

What remains is rounding: diffusers in fp64 is as far from diffusers in fp32 as we are, except where the two
round the timestep's embedding differently (Wan 6e-5, Z-Image 2e-5 of an embedding in -1..1; gradients 2e-5).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from . import ours, theirs
from .case import Case
from .families import CASES
from .result import distance


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_lora_gradients_equal_diffusers(case: Case) -> None:
    assert_parity(case, tokens=(7, 7))


# One of each way in which a network takes text.
UNEQUAL = [
    c for c in CASES if c.row.name in {"sdxl", "flux", "qwen_image", "z_image", "wan21_1_latent_frames"}
]


@pytest.mark.parametrize("case", UNEQUAL, ids=str)
def test_captions_of_different_lengths_in_a_batch_equal_diffusers_one_by_one(case: Case) -> None:
    assert_parity(case, tokens=(7, 14))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_noise_levels_that_are_drawn_by_default_equal_diffusers_schedule(case: Case) -> None:
    # Flow: σ of u = k/1000. eps and v: u in [k/1000, (k + 1)/1000) stands for timestep k.
    u = torch.arange(1, 1001) / 1000 if case.prediction == "flow" else (torch.arange(1000) + 0.5) / 1000
    # atol: σ of the first timesteps comes from 1 - ᾱ, and diffusers has ᾱ in fp32.
    torch.testing.assert_close(ours.noise_levels(case, u), theirs.noise_levels(case), rtol=1e-5, atol=1e-6)


def assert_parity(case: Case, tokens: Sequence[int]) -> None:
    patcher, weights = ours.build(case)
    numbers, result = ours.run(case, patcher, tokens)
    apart = distance(result, theirs.run(case, weights, numbers, result))
    print(apart)  # noqa: T201
    assert apart.target < 1e-6
    assert apart.loss < 1e-5, apart
    assert apart.gradient < 1e-4, apart
    assert apart.cosine > 0.99999, apart
