"""A tiny model of a family with two samples, borrowed, adapted, and its gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from in_graph_lora.trainer.adapters.inject import Adapter, injected
from in_graph_lora.trainer.config import AdapterConfig, MemoryConfig
from in_graph_lora.trainer.host.model import HostDenoiser, borrowed
from in_graph_lora.trainer.host.noise import noise_process
from in_graph_lora.trainer.noise import Noised, add_noise

from ..tiny_models import TINY, build, samples


class Case:
    device = torch.device("cpu")

    def __init__(
        self, name: str, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> None:
        self.name, self.device = name, device or self.device
        self.patcher = build(TINY[name], dtype=dtype, device=self.device)
        self.sampling = self.patcher.model.model_sampling
        with torch.inference_mode(False):
            self.x_0, self.conditioning = samples(self.patcher, TINY[name], 2)

    def noised(self) -> Noised:
        process = noise_process(self.sampling)
        sigma = process.sigma(torch.tensor([0.3, 0.6]), process.shift)
        noise = torch.randn(self.x_0.shape, generator=torch.Generator().manual_seed(7))
        return moved(add_noise(process, self.x_0, noise, sigma), self.device)

    def loss(self, denoiser: HostDenoiser) -> Tensor:
        noised = self.noised()
        output = denoiser.predict(noised.x_t, noised.sigma, self.conditioning)
        return (output - noised.target).square().mean()

    def gradients(self, denoiser: HostDenoiser, adapter: Adapter, context: Any = None) -> Tensor:
        """[n]: of all adapter weights; zero for those that lead nowhere."""
        for p in adapter.parameters():
            p.grad = None
        with context or contextlib.nullcontext():
            self.loss(denoiser).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in adapter.parameters()]
        return torch.cat([g.flatten() for g in grads])


@contextlib.contextmanager
def adapted(
    c: Case,
    targets: str = "attention",
    *,
    streamed: float = 0.0,
    base_precision: str = "as loaded",
    **config: Any,
) -> Iterator[tuple[HostDenoiser, Adapter]]:
    """The model borrowed, with an adapter of which no weight is zero."""
    memory = MemoryConfig(fit="manual", streamed=streamed, base_precision=base_precision)
    with (
        torch.inference_mode(False),
        borrowed(c.patcher, memory) as denoiser,
        injected(
            denoiser.net,
            AdapterConfig(rank=2, targets=targets, **config),
            seed=1,
            compute_dtype=denoiser.half_precision,
            device=denoiser.device,
        ) as adapter,
    ):
        g = torch.Generator().manual_seed(3)
        for p in adapter.parameters():
            p.data = 0.2 * torch.randn(p.shape, generator=g, dtype=p.dtype).to(p.device)
        yield denoiser, adapter


def one_of_each(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The last block of each class: what compiles for it compiles for the others, and each takes seconds."""
    return list({type(block): block for block in blocks}.values())


def moved(noised: Noised, device: torch.device) -> Noised:
    return replace(noised, **{f.name: getattr(noised, f.name).to(device) for f in fields(noised)})


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
