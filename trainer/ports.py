"""What the engine needs from a host. ComfyUI's side of it is `trainer.host`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from .config import MemoryConfig
from .memory.streaming import Packed
from .noise import NoiseProcess

if TYPE_CHECKING:
    from .data.store import Entry
    from .data.views import View

Conditioning = Any
"""Whatever the host's denoiser understands as the condition of one sample; opaque to the engine."""


Controls = Any
"""Control pictures as the host's denoiser and text encoder take them; None is none. Opaque to the engine."""


@dataclass(frozen=True, kw_only=True)
class ControlPictures:
    """What a sample's `Controls` are made of."""

    images: Sequence[Callable[[], Image.Image]] = ()
    """Each reads one, upright and of any size; they are not kept."""
    target: Tensor
    """[H, W, 3], 0..1: the picture that is trained on, or the first frame of the clip, as it was cut."""
    target_size: tuple[int, int]
    """(width, height) in pixels, as it was cut."""
    size: tuple[int, int]
    """(width, height) in pixels, before."""
    cut: Callable[[Image.Image], Tensor]
    """Cuts another picture of `size` in the same way, [H, W, 3]."""
    mask: Tensor | None = None
    """[H, W], 0..1: what an inpaint model paints anew; None is everything."""
    frames: int = 1
    """Of what is trained or drawn."""
    first_frame: bool = False
    """Whether the target itself is shown, as a start picture, where there are no images."""


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

    def drawn(self, x_t: Tensor, conditioning: Sequence[Conditioning]) -> Tensor | None:
        """[B, 1, ...]: 0 where the network is given the picture itself (a start picture) and its output does
        not count; elsewhere so much that the mean over all is that over the rest. None: all of it counts."""
        ...


Traces = frozenset[str]
"""What a condition turned out to depend on beside caption and shape: "network", "latent"."""


class LatentEncoder(Protocol):
    identity: str
    """Of all that decides a latent beside the pixels; latents of two encoders with one are the same."""

    def at_once(self, pixels: Tensor) -> int:
        """How many pictures or clips of this shape `encode` should be given together, at least 1."""
        ...

    def encode(self, pixels: Sequence[Tensor]) -> Sequence[Tensor]:
        """Pictures [H, W, 3] or clips [T, H, W, 3] of one shape, in 0..1, each to its latent [C, ...] as the
        model sees it, fp32, on the CPU. Each has a storage of its own."""
        ...

    takes_controls: bool
    """Whether the model is given control pictures."""
    control_kind: str
    """How it is given them: of two kinds `controls` differ."""
    takes_masks: bool
    """Whether it is given what is to be painted anew, of every picture."""

    def controls(self, pictures: ControlPictures) -> Controls:
        """The part of the condition that comes from control pictures."""
        ...

    def pack_controls(self, controls: Controls) -> Entry:
        """For the disk."""
        ...

    def unpack_controls(self, entry: Entry, pictures: ControlPictures) -> Controls:
        """pictures: as `controls` was given them; target and mask are not looked at."""
        ...


class TextEncoder(Protocol):
    identity: str
    """Of all that decides a condition beside what `encode` is given and `traced` tells."""
    network_identity: str
    """Of the network's own weights."""

    @property
    def told_crops(self) -> bool:
        """Whether a condition says which part of the picture is shown, and how large the picture was."""
        ...

    def fitted(self, caption: str) -> str:
        """The beginning of the caption that can be encoded: all of it, but for texts that are no captions."""
        ...

    def encode(
        self, caption: str, latent: Tensor, references: Controls = None, *, view: View | None = None
    ) -> Conditioning:
        """The condition of one sample, built for the size of its own latent, with its control pictures, and
        for what of the picture it shows where the model takes that."""
        ...

    def traced(
        self, caption: str, latent: Tensor, references: Controls = None, *, view: View | None = None
    ) -> tuple[Conditioning, Traces]:
        """As `encode`, with what the condition depends on: the network's weights, the latent's values."""
        ...

    def pack(self, condition: Conditioning) -> Entry | None:
        """For the disk; None for a kind that is not known."""
        ...

    def unpack(self, entry: Entry) -> Conditioning: ...


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

    def condition(
        self, caption: str, latent: Tensor, references: Controls = None, *, view: View | None = None
    ) -> Conditioning:
        """As `TextEncoder.encode`, with gradients."""
        ...

    def embed(self, placeholder: str, initial: str, vectors: int) -> Mapping[str, nn.Parameter]:
        """Vectors that the word stands for in captions from now on, one set a text encoder: name → [n, d],
        fp32, each row the mean of the initial text's token embeddings."""
        ...


@dataclass(frozen=True, kw_only=True)
class Loan:
    """The models of a run, for as long as they are borrowed."""

    denoiser: Denoiser
    text: TextModel | None = None
    """The text encoder, when it is trained too."""


Lend = Callable[[MemoryConfig], AbstractContextManager[Loan]]
"""Lends the models; may be called again, also with other levers, when the loan before has ended."""
