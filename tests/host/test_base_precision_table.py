"""The table of docs/memory.md: what fp8 and int8 weights change in real blocks at their real width."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.ops
import pytest
import torch
from comfy.ldm.flux.layers import DoubleStreamBlock, EmbedND, SingleStreamBlock
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.qwen_image.model import QwenImageTransformerBlock
from comfy.quant_ops import QUANT_ALGOS
from torch import Tensor, nn

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.config import AS_LOADED, BASE_PRECISIONS, AdapterConfig
from in_graph_lora.trainer.host.base_precision import BasePrecision
from in_graph_lora.trainer.host.kernels import differentiable_kernels
from in_graph_lora.trainer.host.model import in_training
from in_graph_lora.trainer.host.quantised import quantised_layers_differentiable
from in_graph_lora.trainer.host.staging import Staging, nbytes, trainable_view
from in_graph_lora.trainer.memory.out_of_place import out_of_place

from .family_case import relative

pytestmark = pytest.mark.skipif(
    "int8_tensorwise" not in QUANT_ALGOS, reason="this ComfyUI cannot hold weights in int8"
)

PAGE = "docs/memory.md"
BEGIN = "| Block | Width | Held in | Size | Output | Loss | LoRA gradients |\n|---|---|---|---|---|---|---|\n"
CPU = torch.device("cpu")
IMAGE, TEXT = 256, 64
"""Tokens: 256 × 256 pixels, and a prompt."""
MADE: dict[str, Any] = {"dtype": torch.bfloat16, "operations": comfy.ops.manual_cast}


@dataclass(frozen=True)
class Measured:
    name: str
    width: int
    block: Callable[[], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    """(block, image tokens, text tokens, modulation) → what the block adds to its tokens."""
    assigns: bool = False


def positions(axes: list[int]) -> Tensor:
    ids = torch.zeros(1, TEXT + IMAGE, 3)
    ids[0, TEXT:, 1] = torch.arange(IMAGE) // 16
    ids[0, TEXT:, 2] = torch.arange(IMAGE) % 16
    return EmbedND(dim=sum(axes), theta=10000, axes_dim=axes)(ids)


def double(block: Any, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
    new_image, new_text = block(image.clone(), text.clone(), vec, positions([16, 56, 56]))
    return torch.cat([new_text - text, new_image - image], 1)


def single(block: Any, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
    both = torch.cat([text, image], 1)
    return block(both.clone(), vec, positions([16, 56, 56])) - both


def qwen(block: Any, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
    new_text, new_image = block(image, text, None, vec[:, 0], positions([16, 56, 56]))
    return torch.cat([new_text - text, new_image - image], 1)


def cross(block: Any, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
    return block(image, text.repeat(1, 1, 2)[..., :2048]) - image


ROWS = (
    Measured(
        "SDXL BasicTransformerBlock",
        1280,
        lambda: BasicTransformerBlock(1280, 20, 64, context_dim=2048, **MADE),
        cross,
    ),
    Measured(
        "Flux.1 DoubleStreamBlock",
        3072,
        lambda: DoubleStreamBlock(3072, 24, 4.0, qkv_bias=True, **MADE),
        double,
        assigns=True,
    ),
    Measured(
        "Flux.1 SingleStreamBlock",
        3072,
        lambda: SingleStreamBlock(3072, 24, 4.0, **MADE),
        single,
        assigns=True,
    ),
    Measured(
        "Qwen-Image QwenImageTransformerBlock",
        3072,
        lambda: QwenImageTransformerBlock(3072, 24, 128, **MADE),
        qwen,
    ),
)


def generated(row: Measured) -> nn.Module:
    """The block with weights ~ N(0, 1/fan-in), norms of 1 and biases of 0, in bf16."""
    g = torch.Generator().manual_seed(0)
    block = row.block().requires_grad_(False)
    for name, p in block.named_parameters():
        if p.ndim > 1:
            p.data = (torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5).to(p.dtype)
        else:
            p.data = torch.full_like(p, float(not name.endswith("bias")))
    return block


def passed(row: Measured, block: nn.Module, precision: str) -> tuple[int, Tensor, Tensor, Tensor]:
    """(bytes of the block, what it adds, the loss, the gradients of a LoRA of rank 16 on each layer)"""
    g = torch.Generator().manual_seed(1)
    image, text, vec, target = (
        torch.randn(1, n, row.width, generator=g) for n in (IMAGE, TEXT, 1, IMAGE + TEXT)
    )
    base = BasePrecision(precision, [block], CPU)
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), in_training(), differentiable_kernels()):
            stack.enter_context(context)
        stack.enter_context(trainable_view(block, Staging(CPU, held=base.held).view))
        size = sum(nbytes(p) for p in block.parameters())
        stack.enter_context(base.dequantised_at_use())
        stack.enter_context(quantised_layers_differentiable(block))
        stack.enter_context(out_of_place([block] if row.assigns else []))
        net = nn.ModuleDict({"blocks": nn.ModuleList([block])})
        adapter = stack.enter_context(injected(net, AdapterConfig(targets="all linear"), seed=0))
        for name, p in ((n, p) for layer in adapter.layers.values() for n, p in layer.named_parameters()):
            if "lora_B" in name:
                p.data = 0.005 * torch.randn(p.shape, generator=g)
        added = row.call(block, image, text, vec)
        loss = (added - target[:, -added.shape[1] :]).square().mean()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in adapter.parameters()])
        return size, added.detach(), loss.detach(), gradients


def measured(row: Measured) -> dict[str, list[float]]:
    """precision → size, and the relative errors of output, loss and gradients"""
    block = generated(row)
    size, *right = passed(row, block, AS_LOADED)
    found = {}
    for precision in BASE_PRECISIONS[1:]:
        held, *values = passed(row, block, precision)
        found[precision] = [held / size, *(relative(v, r) for v, r in zip(values, right, strict=True))]
    return found


def lines(row: Measured) -> str:
    return "".join(
        f"| {row.name} | {row.width} | {precision} | " + " | ".join(f"{v:.2g}" for v in values) + " |\n"
        for precision, values in measured(row).items()
    )


@pytest.mark.slow
def test_the_table_says_what_is_measured(repo_root: Path) -> None:
    path = repo_root / PAGE
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    assert rest
    table, _, after = rest.partition("\n\n")
    if os.environ.get("IGL_WRITE_DOCS"):
        table = "".join(map(lines, ROWS)).rstrip("\n")
        path.write_text(f"{before}{BEGIN}{table}\n\n{after}", encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert [tuple(c[:3]) for c in cells] == [
        (row.name, str(row.width), precision) for row in ROWS for precision in BASE_PRECISIONS[1:]
    ]
    for precision, values in measured(ROWS[0]).items():  # the others take minutes
        (row,) = (c[3:] for c in cells if c[0] == ROWS[0].name and c[2] == precision)
        written = [float(value) for value in row]
        assert written == pytest.approx(values, rel=0.15), "write it anew: IGL_WRITE_DOCS=1"
