"""What both sides are given: a family's row, and the numbers drawn for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..tiny_rows import Tiny

Prediction = Literal["eps", "v", "flow"]

RANK = 4
GUIDANCE = 3.5
"""For the distilled models among them: ComfyUI's default, and that of diffusers' training script for Flux."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family at a tiny size, for ComfyUI and for diffusers."""

    row: Tiny
    """ComfyUI's half; `from_file`: its loader reads this size from the file."""
    prediction: Prediction
    theirs: Callable[[dict[str, Tensor]], nn.Module]
    """Weights under ComfyUI's names (with the prefix `model.diffusion_model.`) → diffusers' network."""
    predict: Callable[[nn.Module, Numbers], Tensor]
    """diffusers' network called as diffusers' training script for the family calls it."""
    shift: float = 1.0
    """diffusers' `shift` for ComfyUI's default schedule of the family (flow only)."""
    text_mask: bool = False
    """The family's text encoder hands an attention mask on."""

    @property
    def text_width(self) -> int:
        return self.row.text["cross_attn"][-1]

    @property
    def pooled(self) -> int:
        """Width of the pooled text embedding; 0: the family has none."""
        return self.row.text.get("pooled_output", (0,))[-1]

    def __str__(self) -> str:
        return self.row.name


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A batch. `t` counts diffusers' 1000 training timesteps: an index for eps and v, 1000 σ for flow."""

    x_0: Tensor
    noise: Tensor
    sigma: Tensor
    t: Tensor
    text: Tensor
    tokens: tuple[int, ...]
    """How many tokens of `text` each sample's caption has."""
    pooled: Tensor
    x_t: Tensor | None = None

    def alone(self, i: int) -> Numbers:
        """A batch of the i-th sample, its text without padding."""
        parts = {k: getattr(self, k)[i : i + 1] for k in ("x_0", "noise", "sigma", "t", "pooled")}
        return Numbers(text=self.text[i : i + 1, : self.tokens[i]], tokens=self.tokens[i : i + 1], **parts)


def draw(case: Case, sigmas: Tensor, tokens: Sequence[int]) -> Numbers:
    """A batch with captions of these lengths."""
    g = torch.Generator().manual_seed(0)
    batch = len(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    index = torch.tensor([len(sigmas) * k // 10 for k in (7, 3)])
    sigma = sigmas[index]
    return Numbers(
        x_0=normal(batch, *case.row.latent),
        noise=normal(batch, *case.row.latent),
        sigma=sigma,
        t=sigma * 1000 if case.prediction == "flow" else index,
        text=normal(batch, max(tokens), case.text_width),
        tokens=tuple(tokens),
        pooled=normal(batch, case.pooled),
    )


def random_weights(shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Activations stay near 1: matrices by 1/√fan-in, norms around 1, biases and tokens small."""
    g = torch.Generator().manual_seed(0)
    out = {}
    for name, like in shapes.items():
        z = torch.randn(like.shape, generator=g)
        if like.ndim > 1:
            z = z / like[0].numel() ** 0.5
        elif name.endswith(("weight", "scale")):
            z = 1 + 0.1 * z
        else:
            z = 0.1 * z
        out[name] = z
    return out
