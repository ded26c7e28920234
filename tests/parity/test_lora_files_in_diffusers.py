"""Files that we write, read by the loaders of diffusers' pipelines: every tensor used, the same output."""

from __future__ import annotations

from dataclasses import replace

import diffusers.loaders as loaders
import pytest
import torch
from torch import nn

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.adapters.lora_file import file_tensors
from in_graph_lora.trainer.config import AdapterConfig
from in_graph_lora.trainer.host import lora as host
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.noise import add_noise

from . import ours, theirs
from .case import GUIDANCE, Case, draw
from .families import CASES

pytestmark = pytest.mark.slow

LOADERS = {
    "SD15": loaders.StableDiffusionLoraLoaderMixin,
    "SDXL": loaders.StableDiffusionXLLoraLoaderMixin,
    "SD3": loaders.SD3LoraLoaderMixin,
    "Flux": loaders.FluxLoraLoaderMixin,
    "Chroma": loaders.FluxLoraLoaderMixin,
    "Flux2": loaders.Flux2LoraLoaderMixin,
    "QwenImage": loaders.QwenImageLoraLoaderMixin,
    "ZImage": loaders.ZImageLoraLoaderMixin,
    "WAN21_T2V": loaders.WanLoraLoaderMixin,
}
# kohya has names for SD3 that no loader of diffusers knows.
DEFAULT_NAMES = [c for c in CASES if c.row.config in LOADERS and c.row.config != "SD3"]
OWN_NAMES = [c for c in CASES if c.row.config in ("SD15", "SDXL", "SD3", "Flux", "ZImage", "QwenImage")]


@pytest.mark.parametrize("case", DEFAULT_NAMES, ids=str)
def test_saved_file_does_the_same_in_diffusers(case: Case) -> None:
    # diffusers' converter of kohya's Flux names takes the fused linear1 only at the real width of 3072.
    fused = case.row.config in ("Flux", "Chroma")
    targets = r"regex:_blocks.*(attn|mlp|linear2)" if fused else "attention+feed-forward"
    assert_same_in_diffusers(case, "comfyui", AdapterConfig(rank=4, alpha=3, targets=targets))


@pytest.mark.parametrize("case", OWN_NAMES, ids=str)
def test_file_in_diffusers_names_does_the_same_in_diffusers(case: Case) -> None:
    assert_same_in_diffusers(
        case, "diffusers", AdapterConfig(rank=4, alpha=3, targets="attention+feed-forward")
    )


def assert_same_in_diffusers(case: Case, style: str, config: AdapterConfig) -> None:
    patcher, weights = ours.build(case)
    with borrowed(patcher) as denoiser:
        numbers = draw(case, denoiser.process.sigmas, (7, 7))
        encoder = HostTextEncoder(ours.GivenText(case, numbers), patcher, GUIDANCE)
        conditioning = [encoder.encode(str(i), x) for i, x in enumerate(numbers.x_0)]
        x_t = add_noise(denoiser.process, numbers.x_0, numbers.noise, numbers.sigma).x_t
        with torch.no_grad():
            base = denoiser.predict(x_t, numbers.sigma, conditioning)
            with injected(denoiser.net, config, seed=1) as adapter:
                ours._randomise_b(adapter)
                trained = denoiser.predict(x_t, numbers.sigma, conditioning)
                tensors = file_tensors(adapter, host.file_names(patcher, adapter.layers, style))
    given = replace(numbers, x_t=theirs._noised(case, numbers)[0])
    net = case.theirs({k: v.clone() for k, v in weights.items()}).eval().requires_grad_(False)
    with torch.no_grad():
        before = case.predict(net, given)
        load(case, net, tensors)
        output = case.predict(net, given)
    assert (trained - base).abs().max() > 1e-2
    torch.testing.assert_close(output, trained, rtol=1e-4, atol=1e-4 * trained.abs().max().item())
    torch.testing.assert_close(before, base, rtol=1e-4, atol=1e-4 * base.abs().max().item())


def load(case: Case, net: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """By the pipeline's own `load_lora_weights`; fails when a tensor finds no layer."""
    unet = case.row.config in ("SD15", "SDXL")
    parts = {"unet" if unet else "transformer": net, "text_encoder": None, "text_encoder_2": None}
    members = {**parts, "components": parts, "hf_device_map": None, "use_peft_backend": True}
    pipeline = type("Pipeline", (LOADERS[case.row.config],), members)()
    pipeline.load_lora_weights(dict(tensors), adapter_name="x")
    loaded = sum(".lora_" in name for name, _ in net.named_parameters())
    per_layer = 3 if any("dora_scale" in k or "magnitude" in k for k in tensors) else 2
    assert loaded >= per_layer * sum(k.endswith(("lora_down.weight", "lora_A.weight")) for k in tensors)


@pytest.mark.parametrize("case", [c for c in OWN_NAMES if c.row.name in ("sd15", "flux")], ids=str)
def test_dora_in_diffusers_names_does_the_same_in_diffusers(case: Case) -> None:
    layers = r"regex:attn.*(to_q|to_out\.0|proj)$"
    assert_same_in_diffusers(case, "diffusers", AdapterConfig(kind="dora", rank=4, alpha=3, targets=layers))
