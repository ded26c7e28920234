"""What the engine needs from a host. ComfyUI's side of it is `trainer.host`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from .config import MemoryConfig
from .memory.streaming import Packed
from .noise import NoiseProcess

Conditioning = Any
"""Whatever the host's denoiser understands as the condition of one sample; opaque to the engine."""


class Denoiser(Protocol):
    """A frozen network with the noise process it was trained for."""

    net: nn.Module
    """The module that adapters are put into."""
    process: NoiseProcess
    half_precision: torch.dtype | None
    """What the network computes in, when that is bf16 or fp16."""

    blocks: Sequence[nn.Module]
    """What gradient checkpointing and compilation take one by one."""
    device: torch.device
    """What computes."""
    away: Sequence[Packed]
    """Blocks that lie in host memory."""
    base_precision: str
    """What the frozen weights of the blocks are held in for the loan: "as loaded", fp8 or int8."""

    def predict(self, x_t: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
        """The network's own output (epsilon, v or velocity), fp32, of x_t's shape.

        x_t: [B, C, ...] fp32; sigma: [B] fp32; conditioning: one for each of the B samples.
        """
        ...


class LatentEncoder(Protocol):
    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [H, W, 3], or [T, H, W, 3] of a clip, in 0..1 to the latent [C, ...] as the model sees it,
        fp32, on the CPU."""
        ...


class TextEncoder(Protocol):
    def fitted(self, caption: str) -> str:
        """The beginning of the caption that can be encoded: all of it, but for texts that are no captions."""
        ...

    def encode(self, caption: str, latent: Tensor) -> Conditioning:
        """The condition of one sample, built for the size of its own latent."""
        ...


class Sampler(Protocol):
    """The host's own sampler with settings of its own; the model must not be on loan."""

    prompts: Sequence[str]
    settings: str
    """All that decides the pictures besides the LoRA, as text."""

    def pictures(self, lora: Mapping[str, Tensor] | None) -> Generator[Image.Image]:
        """One picture for each prompt, with the LoRA of these file tensors, or with the untouched model."""
        ...


class TextModel(Protocol):
    """A text encoder that is trained with the network: captions are encoded anew in each step."""

    net: nn.Module
    """The module that adapters are put into."""
    blocks: Sequence[nn.Module]
    half_precision: torch.dtype | None

    def condition(self, caption: str, latent: Tensor) -> Conditioning:
        """As `TextEncoder.encode`, with gradients."""
        ...


@dataclass(frozen=True, kw_only=True)
class Loan:
    """The models of a run, for as long as they are borrowed."""

    denoiser: Denoiser
    text: TextModel | None = None
    """The text encoder, when it is trained too."""


Lend = Callable[[MemoryConfig], AbstractContextManager[Loan]]
"""Lends the models; may be called again, also with other levers, when the loan before has ended."""
