"""`python dev.py bench --cards`: what training takes on a card, predicted without one.

The networks have their real sizes and no values: they lie on torch's meta device, where operations make
storages of the right size and compute nothing. `trainer.measure` tries a step out on them as on any device,
and `trainer.memory.plan` computes with that. There are no times, so levers are taken in a fixed order: the
first that fit, from none to all blocks streamed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ..dev import host

CASES = (
    ("sd15", 512, 1),
    ("sdxl", 1024, 1),
    ("sdxl", 1024, 4),
    ("flux", 512, 1),
    ("flux", 1024, 1),
    ("qwen", 512, 1),
    ("qwen", 1024, 1),
)
TITLES = {"sd15": "SD 1.5", "sdxl": "SDXL", "flux": "Flux.1", "qwen": "Qwen-Image"}
SYSTEM = 0.5
"""GB of a card that torch does not get."""


def predicted(name: str, pixels: int, batch: int, device: str = "meta") -> Any:
    """`Measured` of a LoRA of rank 16 on the attention layers of a network in bf16, all else as by default.

    device: "cpu" computes in earnest, for networks that are small enough.
    """
    import comfy.model_management as mm
    import torch

    from in_graph_lora.trainer import measure as measuring
    from in_graph_lora.trainer.config import AdapterConfig, DataConfig, MemoryConfig, TrainConfig
    from in_graph_lora.trainer.data.batches import CachedSample
    from in_graph_lora.trainer.host.conditioning import HostTextEncoder
    from in_graph_lora.trainer.host.model import borrowed
    from in_graph_lora.trainer.ports import Loan

    from .models import MODELS

    m = MODELS[name]
    manual = MemoryConfig(fit="manual", checkpointing=1)
    config = TrainConfig(
        name="cards",
        steps=1,
        adapter=AdapterConfig(rank=16),
        data=DataConfig(batch_size=batch),
        memory=manual,
    )
    with torch.inference_mode(False), ExitStack() as stack:
        if device == "meta":
            stack.enter_context(_nothing_computed())
        patcher = _empty(m, torch.device(device))
        latent = torch.randn(m.latent(1, pixels))[0]
        condition = HostTextEncoder(_Texts(m), patcher).encode("", latent)  # type: ignore[arg-type]
        samples = [CachedSample(latent=latent, conditioning=condition, key="")] * batch
        with borrowed(patcher, manual) as denoiser:
            loan = Loan(denoiser=denoiser)
            found = measuring.measure(loan, config, samples, check_interrupt=lambda: None)
        if device != "meta":
            mm.unload_all_models()
    return replace(found, on_cpu=False)


def table() -> str:
    """Markdown."""
    from in_graph_lora.trainer.memory.plan import CARDS

    lines = [
        "| Model | Pixels, batch | Resident | Checkpointing | " + " | ".join(f"{c} GB" for c in CARDS) + " |",
        "|---|---|---|---|" + "---|" * len(CARDS),
    ]
    for name, pixels, batch in CASES:
        measured = predicted(name, pixels, batch)
        resident, checkpointed = (_gb(measured, checkpointing=n) for n in (0, 1))
        on_cards = [_levers(measured, size - SYSTEM) for size in CARDS]
        row = [TITLES[name], f"{pixels}, {batch}", f"{resident:.1f}", f"{checkpointed:.1f}", *on_cards]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _levers(measured: Any, free: float) -> str:
    """The first that fit; with the whole model in bf16, and with its blocks in fp8 where that needs less."""
    if _gb(measured, checkpointing=0) <= free:
        return "resident"
    if _gb(measured, checkpointing=1) <= free:
        return "checkpointing"
    words = []
    for precision in ("as loaded", "fp8"):
        shares = (i / 20 for i in range(21))
        share = next(
            (s for s in shares if _gb(measured, 1, streamed=s, base_precision=precision) <= free), None
        )
        if share is not None:
            plain = precision == "as loaded"
            words.append(f"streamed {share:g}" if plain else f"fp8{f' streamed {share:g}' if share else ''}")
    return " or ".join(words) or "**no**"


def _gb(measured: Any, checkpointing: int, **levers: Any) -> float:
    from in_graph_lora.trainer.config import MemoryConfig
    from in_graph_lora.trainer.memory.plan import GB, need

    memory = MemoryConfig(fit="manual", checkpointing=checkpointing, **levers)
    return need(measured, memory).with_reserve / GB


class _Texts:
    """Stands in for the CLIP of the graph."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, show_pbar: bool = True) -> list[Any]:
        import torch

        pooled = {"pooled_output": torch.randn(1, self.model.pooled)} if self.model.pooled else {}
        return [[torch.randn(1, *self.model.text), pooled]]


def _empty(model: Any, device: Any) -> Any:
    import comfy.model_patcher
    import torch

    from .models import generated

    made = model.empty(torch.bfloat16)
    net = made.diffusion_model
    if device.type != "meta":
        net.load_state_dict(dict(generated(net, torch.bfloat16)), assign=True)
    net.requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(made, load_device=device, offload_device=device)


@contextmanager
def _nothing_computed() -> Iterator[None]:
    """What asks for values or for a device's memory, and attention, which on the meta device would take the
    form that keeps its whole matrix."""
    import comfy.model_management as mm
    import torch
    from torch import nn

    from in_graph_lora.trainer import measure as measuring
    from in_graph_lora.trainer.updater import Updater

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(
        q: Any, k: Any, v: Any, attn_mask: Any = None, *_: Any, scale: float | None = None, **__: Any
    ) -> Any:
        return fused(q, k, v, attn_mask=attn_mask, scale=scale)[0]

    def step(updater: Updater, loss: Any) -> tuple[float, float, bool]:
        nn.utils.clip_grad_norm_(updater.parameters, updater.max_norm)
        updater.optimizer.step()
        updater.optimizer.zero_grad()
        return 0.0, 0.0, True

    with (
        patch.object(mm, "load_models_gpu", lambda *_, **__: None),
        patch.object(torch.nn.functional, "scaled_dot_product_attention", attention),
        patch.object(Updater, "step", step),
        patch.object(measuring, "_copying", lambda *_: (0.0, 0)),
        patch.object(measuring, "_dequantising", lambda *_: 0.0),
    ):
        yield


def run() -> int:
    with tempfile.TemporaryDirectory() as base:
        host.import_comfyui(Path(os.environ["IGL_COMFYUI"]), Path(base), cpu=True)
        host.register_pack()
        print(table())
    return 0
