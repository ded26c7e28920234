"""Networks of ComfyUI's own classes with few weights, one for each row of tiny_rows.py.

`build(TINY["flux1"])` gives a ModelPatcher as a loader node would. Where ComfyUI reads the sizes from a file,
the weights go through its real loader (`from_file`); elsewhere the family's config class is filled by hand.
Weights are random and scaled by 1/√fan-in; what starts at zero in a real network (gates, output layers) is
random too, so that gradients reach every layer.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models as supported_models
import comfy.supported_models_base
import comfyui_version
import pytest
import torch
from torch import Tensor, nn

from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from workbench.dev.comfyui import PIN

from .tiny_rows import ROWS, Tiny


class UnheardOfBlock(nn.Module):
    """A residual written in place, once by an operator and once by a method whose result is dropped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.ModuleDict({n: nn.Linear(width, width) for n in ("q", "k", "v", "o")})
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, text: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        transformer_options["seen"] = transformer_options.get("seen", 0) + 1
        h = self.norm1(x)
        kv = torch.cat([h, text], 1)
        attended = nn.functional.scaled_dot_product_attention(
            self.attention["q"](h), self.attention["k"](kv), self.attention["v"](kv)
        )
        x += self.attention["o"](attended)
        x.add_(self.mlp(self.norm2(x)), alpha=0.5)
        return x


class UnheardOf(nn.Module):
    """A network whose class no table of ours names."""

    def __init__(self, width: int = 32, depth: int = 3, dtype=None, device=None, operations=None) -> None:
        super().__init__()
        self.dtype = dtype
        self.stem = nn.Linear(4, width)
        self.time = nn.Linear(1, width)
        self.text = nn.Linear(24, width)
        self.stages = nn.ModuleList(UnheardOfBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x, timesteps, context, control=None, transformer_options=None, **kwargs) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.stem(x.flatten(2).transpose(1, 2)) + self.time(
            timesteps.view(-1, 1, 1).to(x.dtype) / 1000
        )
        for stage in self.stages:
            tokens = stage(tokens, self.text(context), transformer_options=transformer_options)
        return self.head(tokens).transpose(1, 2).reshape(b, c, h, w)


class UnheardOfConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}
    latent_format = comfy.supported_models.SD15.latent_format

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.BaseModel(
            self, comfy.model_base.ModelType.FLOW, device=device, unet_model=UnheardOf
        )


UNHEARD_OF = Tiny(
    name="unheard_of",
    config="",
    unet={"width": 32, "depth": 3},
    latent=(4, 6, 6),
    text={"cross_attn": (7, 24)},
)

TINY = {row.name: row for row in (*ROWS, UNHEARD_OF)}


def randomise(net: nn.Module, seed: int) -> None:
    """Weights that keep activations of size 1 and leave no gate closed."""
    g = torch.Generator().manual_seed(seed)
    for name, p in net.named_parameters():
        if name.endswith(("logit_scale",)):
            continue
        noise = torch.randn(p.shape, generator=g)
        if p.ndim > 1:
            p.data = noise / p[0].numel() ** 0.5
        elif "norm" in name and name.endswith(("weight", "scale")):
            p.data = 1 + 0.1 * noise
        else:
            p.data = 0.1 * noise
    for name, b in net.named_buffers():
        if b.is_floating_point() and b.ndim > 1 and "pos_embed" in name:
            b.data = 0.1 * torch.randn(b.shape, generator=g)


def _shrink(net: nn.Module) -> None:
    """What no config makes small: Anima's text adapter."""
    if hasattr(net, "llm_adapter"):
        from comfy.ldm.anima.model import LLMAdapter

        ops = comfy.ops.disable_weight_init
        sizes = {"source_dim": 24, "target_dim": 24, "model_dim": 24, "num_layers": 1, "num_heads": 2}
        net.llm_adapter = LLMAdapter(**sizes, dtype=torch.float32, operations=ops)


def config_class(name: str) -> type:
    """ComfyUI's model config; an older ComfyUI than the pinned one may lack it, and the test is skipped."""
    if not name:
        return UnheardOfConfig
    if not hasattr(supported_models, name) and comfyui_version.__version__ != PIN.version:
        pytest.skip(f"ComfyUI {comfyui_version.__version__} has no {name}")
    return getattr(supported_models, name)


CPU = torch.device("cpu")


def build(
    tiny: Tiny, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> comfy.model_patcher.ModelPatcher:
    """The model as a loader node gives it: its parameters are inference tensors.

    device: where ComfyUI is to bring it for work; until then it is on the CPU.
    """
    with torch.inference_mode(False):
        config = config_class(tiny.config)(dict(tiny.unet))
        config.sampling_settings.update(tiny.sampling)
        config.set_inference_dtype(dtype, None)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = config.get_model(dict(tiny.markers), "")
            _shrink(model.diffusion_model)
        randomise(model.diffusion_model, seed)
        model.diffusion_model.to(dtype)
        weights = {k: v.detach().clone() for k, v in model.diffusion_model.state_dict().items()}
    with torch.inference_mode():
        if tiny.from_file:
            patcher = comfy.sd.load_diffusion_model_state_dict(weights, {"dtype": dtype})
            assert patcher is not None, f"ComfyUI does not recognise the tiny {tiny.name}"
            assert type(patcher.model.model_config).__name__ == tiny.config
            return patcher if patcher.load_device == device else brought_to(patcher.model, device)
        for m in model.modules():
            for name, p in m.named_parameters(recurse=False):
                m._parameters[name] = nn.Parameter(p.detach().clone(), requires_grad=False)
        return brought_to(model, device)


def brought_to(model: Any, device: torch.device) -> comfy.model_patcher.ModelPatcher:
    """A patcher of this network, as a loader makes it, that ComfyUI brings to another device."""
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=CPU)


class FakeClip:
    """Random text embeddings of the right shapes."""

    def __init__(self, tiny: Tiny) -> None:
        self.tiny = tiny

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, show_pbar: bool = True) -> list[Any]:
        g = torch.Generator().manual_seed(sum(tokens.encode()))
        made = {
            name: what if isinstance(what, Tensor) else torch.randn(1, *what, generator=g)
            for name, what in self.tiny.text.items()
        }
        return [[made.pop("cross_attn"), made]]


def samples(
    patcher: comfy.model_patcher.ModelPatcher, tiny: Tiny, n: int, seed: int = 0
) -> tuple[Tensor, list]:
    """[n, C, ...] latents and the condition of each, as the pack's own text encoder builds it."""
    g = torch.Generator().manual_seed(seed)
    x_0 = torch.randn(n, *tiny.latent, generator=g)
    encoder = HostTextEncoder(FakeClip(tiny), patcher)  # type: ignore[arg-type]
    return x_0, [encoder.encode(f"caption {i}", x_0[i]) for i in range(n)]
