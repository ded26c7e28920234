"""Each kind, in each spelling, in the programs that read it: the layer's change as it was in training.

docs/adapters.md has the same table; IGL_WRITE_DOCS=1 in the environment of this test writes it anew.
What a reader refuses or reads otherwise is listed here with the reason, and the test fails when that is no
longer so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import comfy.lora
import diffusers.loaders as loaders
import pytest
import torch
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.adapters.kinds import KINDS
from in_graph_lora.trainer.adapters.lora_file import file_tensors, read_lora, write_lora
from in_graph_lora.trainer.adapters.metadata import training_metadata
from in_graph_lora.trainer.adapters.names import FileName
from in_graph_lora.trainer.adapters.readers import read_start
from in_graph_lora.trainer.config import ADAPTER_FILE_NAMES, ADAPTER_KINDS, AdapterConfig, TrainConfig
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.host import lora as host

from . import ours, readers
from .case import Case
from .families import CASES

pytestmark = pytest.mark.slow

CLOSE = 1e-5
"""Error of a layer's change, relative to its size."""
READERS = {
    "comfyui": "Load LoRA",
    "apply lora": "Apply LoRA, by file",
    "start from": "start_from",
    "lycoris forward": "LyCORIS, applied",
    "lycoris merge": "LyCORIS, merged",
    "diffusers": "diffusers",
}
OURS = ("apply lora", "start from")
STYLES = [
    (kind, style)
    for kind in ADAPTER_KINDS
    for style in ADAPTER_FILE_NAMES
    if style != "diffusers" or KINDS[kind].has_b
]
OTHERWISE = {
    # These divide dora_scale by the other norm.
    ("dora", "comfyui", "lycoris forward"),
    ("dora", "comfyui", "lycoris merge"),
    ("dora", "lycoris", "comfyui"),
    # It drops dora_scale, with a warning.
    ("dora", "comfyui", "diffusers"),
    ("dora", "lycoris", "diffusers"),
}
REFUSED = {
    # It does not know these kinds of SD 1.
    *((kind, s, "diffusers") for kind in ("loha", "lokr", "oft", "full") for s in ("comfyui", "lycoris")),
    # They do not know diffusers' names.
    *((kind, "diffusers", r) for kind in ADAPTER_KINDS for r in READERS if r not in (*OURS, "diffusers")),
}
SD15_LAYERS = r"regex:input_blocks\.1\..*(attn2\.to_[qk]|to_out\.0|ff\.net\.2|in_layers\.2|proj_in)$"
"""Linear layers, square and not, and convolutions of 1 × 1 and 3 × 3."""


def config_of(kind: str, style: str, targets: str) -> AdapterConfig:
    alpha = 0.0 if kind in ("oft", "full") else 3.0
    return AdapterConfig(kind=kind, rank=4, alpha=alpha, targets=targets, file_names=style)


class Trained:
    """An adapter's file, and what its layers make of random inputs. Layers are called as the network does."""

    def __init__(self, net: nn.Module, config: AdapterConfig, names: Any) -> None:
        """names: layers → their names in the file."""
        g = torch.Generator().manual_seed(7)
        self.config, self.net = config, net
        self.x: dict[str, Tensor] = {}
        self.base: dict[str, Tensor] = {}
        self.change: dict[str, Tensor] = {}
        with torch.inference_mode(False), injected(net, config, seed=0) as adapter:
            for p in adapter.parameters():
                p.data += 0.1 * torch.randn(p.shape, generator=g)
            self.names = names(adapter.layers)
            self.tensors = file_tensors(adapter, self.names)
            for name, layer in adapter.layers.items():
                own: Any = layer.base_layer
                width = own.in_channels if hasattr(own, "in_channels") else own.in_features
                shape = {nn.Conv2d: (1, width, 6, 6), nn.Conv1d: (1, width, 6)}
                kind = next((cls for cls in shape if isinstance(own, cls)), None)
                self.x[name] = torch.randn(shape[kind] if kind else (5, width), generator=g)
                self.base[name] = readers.output_of(own)(self.x[name])
                with torch.no_grad():
                    self.change[name] = layer(self.x[name]) - own(self.x[name])

    def error(self, layer: str, output: readers.Output) -> float:
        found = output(self.x[layer]) - self.base[layer]
        return float((found - self.change[layer]).norm() / self.change[layer].norm())

    def saved(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Written and read, as the nodes do it."""
        config = TrainConfig(adapter=self.config).to_dict()
        about = training_metadata(config, base_model="sd_v1", steps=1, alpha=3.0, rank=4)
        write_lora(self.tensors, path, about)
        return read_lora(path)

    def started(self, patcher: Any, tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[float]:
        """By an adapter whose training goes on from the file."""
        aliases, shapes = host.aliases(patcher), host.layer_shapes(patcher)
        start = read_start(tensors, aliases, shapes, metadata=metadata)
        with torch.inference_mode(False), injected(self.net, AdapterConfig(), seed=1, start=start) as adapter:
            return [self.error(name, readers.output_of(layer)) for name, layer in adapter.layers.items()]

    def by_comfyui(self, patcher: Any, patched: Any) -> list[float]:
        return [self.error(name, readers.by_comfyui(patcher, patched, name)) for name in self.x]

    def by_lycoris(self, net: nn.Module, reader: str) -> list[float]:
        how = readers.by_lycoris_forward if reader == "lycoris forward" else readers.by_lycoris_merge
        with readers.lycoris_modules(net, self.tensors) as modules:
            return [self.error(name, how(modules[self.names[name].prefix])) for name in self.x]

    def by_module(self, net: nn.Module, names: dict[str, str]) -> list[float]:
        """names: layer → what the reader's network calls it."""
        return [self.error(name, readers.output_of(net.get_submodule(names[name]))) for name in self.x]


def trained(patcher: Any, kind: str, style: str, targets: str) -> Trained:
    config = config_of(kind, style, targets)
    net = patcher.model.diffusion_model
    return Trained(net, config, lambda layers: host.file_names(patcher, layers, style))


def case_of(config: str) -> Case:
    return next(case for case in CASES if case.row.config == config)


@pytest.fixture(scope="module")
def sd15():
    """ComfyUI's patcher and diffusers' UNet, with the same weights."""
    case = case_of("SD15")
    patcher, weights = ours.build(case)
    return patcher, case.theirs({k: v.clone() for k, v in weights.items()}).eval().requires_grad_(False)


def errors(sd15: Any, made: Trained, reader: str, path: Path) -> list[float]:
    patcher, unet = sd15
    if reader == "comfyui":
        return made.by_comfyui(patcher, readers.stock(patcher, made.tensors, len(made.x)))
    if reader == "apply lora":
        read, _ = made.saved(path)
        return made.by_comfyui(patcher, host.apply_lora(patcher, None, read, 1.0, 1.0)[0])
    if reader == "start from":
        return made.started(patcher, *made.saved(path))
    if reader == "diffusers":
        net = readers.by_diffusers(loaders.StableDiffusionLoraLoaderMixin, "unet", unet, made.tensors)
        return made.by_module(net, host._unet_names(patcher))
    return made.by_lycoris(unet, reader)


Figure = Callable[[str, str, str], "float | None"]


@pytest.fixture(scope="module")
def figure(sd15, tmp_path_factory) -> Figure:
    """(kind, spelling, reader) → the largest error of a layer, or None where the file is not read."""
    path = tmp_path_factory.mktemp("readers") / "x.safetensors"

    @cache
    def measured(kind: str, style: str, reader: str) -> float | None:
        made = trained(sd15[0], kind, style, SD15_LAYERS)
        try:
            return max(errors(sd15, made, reader, path))
        except (readers.NotReadError, ValueError):
            return None

    return measured


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("kind", "style"), STYLES)
def test_a_reader_gives_each_layer_the_change_that_was_trained(figure, kind, style, reader):
    error = figure(kind, style, reader)
    if (kind, style, reader) in REFUSED:
        assert error is None
    else:
        assert error is not None
        otherwise = (kind, style, reader) in OTHERWISE
        assert error > 1000 * CLOSE if otherwise else error < CLOSE


def table(figure: Figure) -> str:
    def cell(error: float | None) -> str:
        return "not read" if error is None else "exact" if error < CLOSE else f"{error:.0%} off"

    head = f"| kind | `file_names` | {' | '.join(READERS.values())} |\n{'|---' * (len(READERS) + 2)}|\n"
    rows = (
        f"| {kind} | {style} | {' | '.join(cell(figure(kind, style, r)) for r in READERS)} |\n"
        for kind, style in STYLES
    )
    return head + "".join(rows)


def test_the_table_in_the_docs_is_what_was_measured(figure, repo_root):
    page = repo_root / "docs" / "adapters.md"
    text, found = page.read_text(encoding="utf-8"), table(figure)
    start = text.index(found.partition("\n")[0])
    end = text.index("\n\n", start) + 1
    if os.environ.get("IGL_WRITE_DOCS"):
        text = text[:start] + found + text[end:]
        page.write_text(text, encoding="utf-8")
    assert found in text, "write it anew: IGL_WRITE_DOCS=1 python dev.py test"


ALPHA_APART = {"loha": "hada_w1_a", "lokr": "lokr_w1"}


@pytest.mark.parametrize("reader", ["comfyui", "apply lora", "start from", "lycoris forward"])
@pytest.mark.parametrize("kind", ALPHA_APART)
def test_loha_and_lokr_with_alpha_apart_are_read_too(sd15, kind, reader, tmp_path):
    """As LyCORIS writes them, and as we did: the product without α/r, which the file has as alpha."""
    made = trained(sd15[0], kind, "comfyui", SD15_LAYERS)
    for key in [k for k in made.tensors if k.endswith(ALPHA_APART[kind])]:
        prefix = key.partition(".")[0]
        if kind == "lokr" and f"{prefix}.lokr_w2" in made.tensors:
            continue  # without a rank it has no scale
        made.tensors[key] /= 3 / 4
        made.tensors[f"{prefix}.alpha"] = torch.tensor(3.0)
    assert max(errors(sd15, made, reader, tmp_path / "x.safetensors")) < CLOSE


@pytest.mark.parametrize("reader", ["comfyui", "lycoris forward", "lycoris merge"])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("Flux", r"regex:double_blocks\.0\.img_(attn|mlp)|single_blocks\.0\.linear1"),
        ("ZImage", r"regex:^layers\.0\.(attention\.(qkv|out)|feed_forward\.w1)"),
    ],
)
def test_lycoris_reads_other_families_in_its_own_spelling(family, targets, kind, reader):
    """Its names are those of the checkpoint's modules, as in kohya's networks, so ComfyUI's serve."""
    patcher, _ = ours.build(case_of(family))
    made = trained(patcher, kind, "lycoris", targets)
    if reader == "comfyui":
        found = made.by_comfyui(patcher, readers.stock(patcher, made.tensors, len(made.x)))
        assert (max(found) > 1000 * CLOSE) if kind == "dora" else (max(found) < CLOSE)
    else:
        assert max(made.by_lycoris(patcher.model.diffusion_model, reader)) < CLOSE


def test_diffusers_reads_lokr_of_z_image_where_it_has_the_same_layers():
    """Not that of qkv, which diffusers has in three: a Kronecker product cannot be cut."""
    case = case_of("ZImage")
    patcher, weights = ours.build(case)
    net = case.theirs({k: v.clone() for k, v in weights.items()}).eval().requires_grad_(False)
    made = trained(patcher, "lokr", "comfyui", r"regex:^layers\.\d\.(attention\.out|feed_forward)")
    loaded = readers.by_diffusers(loaders.ZImageLoraLoaderMixin, "transformer", net, made.tensors)
    names = {layer: name.prefix.removeprefix("diffusion_model.") for layer, name in made.names.items()}
    assert max(made.by_module(loaded, names)) < CLOSE
    fused = trained(patcher, "lokr", "comfyui", r"regex:^layers\.\d\.attention")
    loaded = readers.by_diffusers(loaders.ZImageLoraLoaderMixin, "transformer", net, fused.tensors)
    adapted = {name.partition(".lokr_")[0] for name, _ in loaded.named_parameters() if ".lokr_" in name}
    assert adapted
    assert all(name.endswith("attention.to_out.0") for name in adapted)


def alone(layer: nn.Module, kind: str, style: str, rank: int = 4) -> tuple[nn.Module, Trained]:
    """A network of one layer with kohya's name, and its adapter."""
    torch.manual_seed(0)
    for p in layer.parameters():
        p.data = torch.randn(p.shape) / 10
    net = nn.Module()
    net.blocks = nn.ModuleList([layer]).requires_grad_(False)
    config = AdapterConfig(kind=kind, rank=rank, targets="regex:blocks", file_names=style)
    return net, Trained(net, config, lambda layers: {n: FileName("lora_unet_blocks_0") for n in layers})


def of_comfyui(net: Any, made: Trained) -> float:
    """By ComfyUI's adapter, without a model around the layer."""
    key = "blocks.0.weight"
    patches = comfy.lora.load_lora(made.tensors, {"lora_unet_blocks_0": key})
    weight = net.blocks[0].weight.detach().clone()
    weight = comfy.lora.calculate_weight([(1.0, patches[key], 1.0, None, None)], weight, key)
    return made.error("blocks.0", readers.with_weight(net.blocks[0], weight))


def test_lycoris_refuses_a_factored_lokr_of_some_convolutions_and_reads_it_multiplied_out():
    """It counts the kernel among the inputs. SD 1.5's 640 ← 1920 is such a convolution."""
    net, made = alone(nn.Conv2d(1920, 640, 3, padding=1, bias=False), "lokr", "comfyui")
    assert of_comfyui(net, made) < CLOSE
    with pytest.raises(RuntimeError, match="size"):
        made.by_lycoris(net, "lycoris forward")
    net, made = alone(nn.Conv2d(1920, 640, 3, padding=1, bias=False), "lokr", "lycoris")
    assert of_comfyui(net, made) < CLOSE
    assert max(made.by_lycoris(net, "lycoris forward") + made.by_lycoris(net, "lycoris merge")) < CLOSE


def own_of_lycoris(cls: type, layer: nn.Module) -> Any:
    """A module that LyCORIS makes itself, with α/r = ½."""
    torch.manual_seed(0)
    own = cls("lora_unet_blocks_0", layer, lora_dim=4, alpha=2)
    for p in own.parameters():
        p.data = torch.randn(p.shape) / 10
    return own


@pytest.mark.parametrize("cls", [LohaModule, LokrModule])
def test_lycoris_merges_its_own_loha_and_lokr_at_half_the_strength_that_it_trains(cls):
    """It multiplies by α/r twice: only a file whose α is r does the same in all readers."""
    layer, x = nn.Linear(320, 320), torch.randn(5, 320)
    own, base = own_of_lycoris(cls, layer), readers.output_of(layer)(x)
    merged, applied = readers.by_lycoris_merge(own)(x) - base, readers.by_lycoris_forward(own)(x) - base
    torch.testing.assert_close(merged, applied / 2)


def test_lycoris_refuses_a_lokr_of_some_convolutions_that_it_made_itself():
    net = nn.Module()
    net.blocks = nn.ModuleList([nn.Conv2d(1920, 640, 3, bias=False)])
    own = own_of_lycoris(LokrModule, net.blocks[0]).state_dict()
    file = {f"lora_unet_blocks_0.{key}": value for key, value in own.items()}
    with pytest.raises(RuntimeError, match="size"), readers.lycoris_modules(net, file):
        pass


def test_lycoris_refuses_large_oft_blocks_and_its_spelling_refuses_them_before_training():
    net, made = alone(nn.Linear(64, 64), "oft", "comfyui", rank=16)
    assert of_comfyui(net, made) < CLOSE
    with pytest.raises(RuntimeError, match="size"):
        made.by_lycoris(net, "lycoris forward")
    with pytest.raises(ConfigError, match=r"blocks of 16 rows for 64 outputs; set the rank to 8 or less"):
        alone(nn.Linear(64, 64), "oft", "lycoris", rank=16)
    net, made = alone(nn.Linear(64, 64), "oft", "lycoris", rank=8)
    assert max(made.by_lycoris(net, "lycoris forward")) < CLOSE


@pytest.mark.parametrize("style", ["comfyui", "lycoris"])
@pytest.mark.parametrize("rank", [2, 64])
def test_comfyui_reads_lokr_of_one_dimensional_convolutions_in_both_spellings(rank, style):
    """LyCORIS multiplies w1 with a whole w2, which rank 64 has, in another order than peft and ComfyUI."""
    net, made = alone(nn.Conv1d(48, 32, 3, padding=1, bias=False), "lokr", style, rank)
    assert of_comfyui(net, made) < CLOSE
    if rank == 64:
        assert max(made.by_lycoris(net, "lycoris forward")) > 1000 * CLOSE
