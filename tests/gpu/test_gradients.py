"""Gradients on the GPU are those of the CPU: with the model resident, streamed, and quantised."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from in_graph_lora.trainer.config import ADAPTER_KINDS
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.streaming import streamed

from ..host.family_case import Case, adapted, relative
from ..host.test_quantised import data, layer_of, lent
from ..host.test_quantised_models import load
from ..quantised import FORMATS, full
from ..tiny_models import CPU, TINY, brought_to, samples

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*_scaled_mm.*")]

FAMILIES = ("sd15", "sdxl", "sd3", "flux1", "qwen_image", "z_image", "chroma", "unheard_of")
HALF = 1e-3
"""Relative; of bf16. What rounding alone does is measured beside it."""


def gradients(c: Case, share: float = 0.0, **config: Any) -> Tensor:
    """[n] fp32 on the CPU: of all adapter weights, each block checkpointed."""
    with adapted(c, "all linear", streamed=share, **config) as (denoiser, adapter), ExitStack() as stack:
        stack.enter_context(streamed(denoiser.away, denoiser.device))
        stack.enter_context(checkpointed(denoiser.blocks, 1))
        c.gradients(denoiser, adapter)
        assert denoiser.device == c.device
        return c.gradients(denoiser, adapter).float().cpu()


@pytest.mark.parametrize("name", FAMILIES)
def test_fp32_gradients_are_the_cpus(name: str, device: torch.device, record_property: Any) -> None:
    right, found = gradients(Case(name)), gradients(Case(name, device=device))
    record_property("relative", error := relative(found, right))
    assert error < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_gradients_are_as_near_to_fp32s_as_the_cpus(
    name: str, device: torch.device, record_property: Any
) -> None:
    """Within HALF of the CPU's, or as near to the gradients of the same weights in fp32 as the CPU's are."""
    c, here = Case(name, torch.bfloat16), Case(name, torch.bfloat16, device)
    for each in (c, here):  # a CPU takes bf16 weights and computes in fp32, unless it is told
        each.patcher.set_model_compute_dtype(torch.bfloat16)
    right, found = gradients(c), gradients(here)
    exact = gradients(widened(c))
    own, theirs = relative(found, exact), relative(right, exact)
    record_property("relative", error := relative(found, right))
    record_property("rounding", {"here": own, "cpu": theirs})
    assert error < HALF or own < 1.1 * theirs


def widened(c: Case) -> Case:
    """The same weights in fp32."""
    twin = Case(c.name)
    with torch.inference_mode():
        weights = {k: v.float() for k, v in c.patcher.model.diffusion_model.state_dict().items()}
        twin.patcher.model.diffusion_model.load_state_dict(weights)
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_gradients_are_the_resident_ones_bit_for_bit(
    name: str, share: float, dtype: torch.dtype, device: torch.device
) -> None:
    c = Case(name, dtype, device)
    assert torch.equal(gradients(c, share), gradients(c))


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_of_adapter_has_them_too(kind: str, device: torch.device) -> None:
    c = Case("flux1", device=device)
    resident = gradients(c, kind=kind)
    assert torch.equal(gradients(c, 1.0, kind=kind), resident)
    assert relative(resident, gradients(Case("flux1"), kind=kind)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_inputs_gradient_of_a_quantised_layer_is_the_cpus(
    name: str, dtype: torch.dtype, device: torch.device, record_property: Any
) -> None:
    """It is grad_y · dequant(W), whatever the forward pass rounds."""
    found, right = (inputs_gradient(name, where, dtype) for where in (device, CPU))
    record_property("relative", error := relative(found, right))
    assert error < (1e-5 if dtype == torch.float32 else HALF)
    exact = data()[1] @ full(layer_of(name))
    assert relative(found, exact) < (1e-5 if dtype == torch.float32 else 1e-2)


def inputs_gradient(name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    layer = layer_of(name)
    with torch.inference_mode():
        layer.to(device)
    x, slope = (t.detach().to(device, dtype) for t in data())
    with lent(layer):
        layer(x.requires_grad_()).backward(slope)
    assert x.grad is not None
    assert x.grad.device.type == device.type
    return x.grad.float().cpu()


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_of_a_quantised_model_are_the_cpus_and_the_same_streamed(
    name: str, device: torch.device, record_property: Any
) -> None:
    form = FORMATS[name]
    here, there = quantised_case(name, device), quantised_case(name, CPU)
    resident = gradients(here)
    assert torch.equal(gradients(here, 1.0), resident)
    record_property("relative", error := relative(resident, gradients(there)))
    # Where a device computes in the format, its forward pass rounds the activations too.
    assert error < max(1e-5, 2 * form.rounding)


class _Quantised(Case):
    def __init__(self, patcher: Any, device: torch.device) -> None:
        self.device, self.patcher = device, patcher
        self.sampling = patcher.model.model_sampling
        with torch.inference_mode(False):
            self.x_0, self.conditioning = samples(patcher, TINY["flux1"], 2)


def quantised_case(name: str, device: torch.device) -> Case:
    patcher = load(FORMATS[name])
    if patcher.load_device != device:
        with torch.inference_mode():
            patcher.detach()
            patcher = brought_to(patcher.model, device)
    return _Quantised(patcher, device)
