"""Files that we write, in ComfyUI's stock loader; files of others, in our readers."""

from __future__ import annotations

import re

import comfy.lora
import comfy.model_management as mm
import comfy.ops
import comfy.sd1_clip
import comfy.sdxl_clip
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from in_graph_lora.nodes.apply_lora import ApplyLoRA
from in_graph_lora.nodes.lora_adapter import LoRAAdapter
from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.adapters.lora_file import file_tensors
from in_graph_lora.trainer.adapters.metadata import DORA_NORM
from in_graph_lora.trainer.adapters.readers import read_start
from in_graph_lora.trainer.config import ADAPTER_KINDS, AdapterConfig
from in_graph_lora.trainer.errors import ConfigError, LoraFileError
from in_graph_lora.trainer.host import lora as host
from in_graph_lora.trainer.host.model import borrowed

from ..tiny_models import TINY, build, samples

OUR_DORA = {DORA_NORM: "base"}


def shaken(adapter, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(5)
    for p in adapter.parameters():
        p.data += size * torch.randn(p.shape, generator=generator)


class Case:
    """A tiny model, a batch for it, and its output."""

    def __init__(self, name: str) -> None:
        self.tiny = TINY[name]
        self.patcher = build(self.tiny)
        self.x, self.cond = samples(self.patcher, self.tiny, 1)

    def output(self, denoiser) -> torch.Tensor:
        sigma = denoiser.process.sigmas[len(denoiser.process.sigmas) // 2].reshape(1)
        with torch.no_grad():
            return denoiser.predict(self.x, sigma, self.cond)

    def trained(self, config: AdapterConfig, style: str = "comfyui"):
        """(file tensors, output with the adapter, output without)"""
        with torch.inference_mode(False), borrowed(self.patcher) as denoiser:
            base = self.output(denoiser)
            with injected(denoiser.net, config, seed=0) as adapter:
                shaken(adapter)
                names = host.file_names(self.patcher, adapter.layers, style)
                return file_tensors(adapter, names), self.output(denoiser), base

    def patched(self, patcher) -> torch.Tensor:
        with torch.inference_mode(False):
            with borrowed(patcher) as denoiser:
                out = self.output(denoiser)
            mm.unload_all_models()
        return out

    def by_stock_loader(self, tensors) -> torch.Tensor:
        """Patched as LoraLoader does it; every tensor must be used."""
        keys = comfy.lora.model_lora_keys_unet(self.patcher.model, {})
        patches = comfy.lora.load_lora(tensors, keys)
        whole = [key for key, patch in patches.items() if isinstance(patch, tuple)]  # ("diff", …)
        loaded = {key for of in patches.keys() - whole for key in patches[of].loaded_keys}
        assert loaded == {key for key in tensors if not key.endswith(".diff")}
        assert len(whole) + len(loaded) == len(tensors)
        patcher = self.patcher.clone()
        assert set(patcher.add_patches(patches, 1.0)) == set(patches)
        return self.patched(patcher)

    def started(self, config: AdapterConfig, tensors, **how) -> torch.Tensor:
        """Output of an adapter that goes on from the file."""
        start = read_start(tensors, host.aliases(self.patcher), host.layer_shapes(self.patcher), **how)
        with (
            torch.inference_mode(False),
            borrowed(self.patcher) as denoiser,
            injected(denoiser.net, config, seed=1, start=start) as adapter,
        ):
            assert len(adapter.layers) == len(start.layers)
            return self.output(denoiser)


def assert_same(a, b, base, tolerance: float = 1e-4) -> None:
    assert (a - b).abs().max() < tolerance * max(1.0, float(base.abs().max()))
    assert (b - base).abs().max() > 10 * tolerance, "the adapter changes too little to prove anything"


@pytest.fixture(scope="module")
def sd15() -> Case:
    return Case("sd15")


@pytest.fixture(scope="module")
def z_image() -> Case:
    return Case("z_image")


@pytest.mark.parametrize("family", sorted(TINY))
def test_saved_file_loads_whole_through_stock_lora_loader(family):
    case = Case(family)
    tensors, trained, base = case.trained(AdapterConfig(rank=3, alpha=2, targets="attention+feed-forward"))
    assert_same(case.by_stock_loader(tensors), trained, base)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize("family", ["sd15", "z_image"])
def test_every_kind_does_in_stock_lora_loader_what_it_did_in_training(family, kind, request):
    case = request.getfixturevalue(family)
    config = config_of(kind)
    tensors, trained, base = case.trained(config)
    assert_same(case.by_stock_loader(tensors), trained, base)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize("family", ["sd15", "z_image"])
def test_training_that_goes_on_from_a_saved_file_starts_with_the_same_function(family, kind, request):
    case = request.getfixturevalue(family)
    tensors, trained, base = case.trained(config_of(kind))
    again = case.started(AdapterConfig(rank=7), tensors, metadata=OUR_DORA)
    assert_same(again, trained, base, 2e-5)


def config_of(kind: str) -> AdapterConfig:
    alpha = 0.0 if kind in ("oft", "full") else 3.0
    return AdapterConfig(
        kind=kind, rank=4, alpha=alpha, targets="all linear + conv", rank_by_block="attn2|qkv=6"
    )


def test_kohya_names_are_used_where_kohya_has_them(sd15):
    tensors, _, _ = sd15.trained(AdapterConfig(rank=2))
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in tensors
    assert all(key.endswith((".lora_down.weight", ".lora_up.weight", ".alpha")) for key in tensors)


def test_fused_qkv_of_z_image_is_written_as_diffusers_has_it(z_image):
    tensors, _, _ = z_image.trained(AdapterConfig(rank=2))
    layer = "diffusion_model.layers.0.attention"
    assert {f"{layer}.{m}.lora_A.weight" for m in ("to_q", "to_k", "to_v", "to_out.0")} <= set(tensors)


def respelled(tensors, rename):
    return {rename(key): value for key, value in tensors.items()}


def diffusers_style(sd15, suffixes=(".lora.down.weight", ".lora.up.weight"), prefix="unet.", processor=False):
    """An SD1.5 file as older diffusers wrote it: no alpha, scale 1."""
    tensors, trained, base = sd15.trained(AdapterConfig(rank=4), "diffusers")

    def rename(key: str) -> str:
        key = key.replace(".lora_A.weight", suffixes[0]).replace(".lora_B.weight", suffixes[1])
        if processor:
            key = key.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_")
        return prefix + key.removeprefix("unet.")

    return respelled(tensors, rename), trained, base


SPELLINGS = {
    "diffusers": {},
    "diffusers with peft": {"suffixes": (".lora_A.weight", ".lora_B.weight")},
    "peft": {"suffixes": (".lora_A.weight", ".lora_B.weight"), "prefix": "base_model.model."},
    "peft around a unet": {
        "suffixes": (".lora_A.weight", ".lora_B.weight"),
        "prefix": "unet.base_model.model.",
    },
    "attention processors": {"suffixes": ("_lora.down.weight", "_lora.up.weight"), "processor": True},
    "attention processors without unet": {
        "suffixes": ("_lora.down.weight", "_lora.up.weight"),
        "processor": True,
        "prefix": "",
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_diffusers_files_of_sd15_are_applied_and_trained_further(sd15, spelling):
    tensors, trained, base = diffusers_style(sd15, **SPELLINGS[spelling])
    patched, _ = host.apply_lora(sd15.patcher, None, tensors, 1.0, 1.0)
    assert_same(sd15.patched(patched), trained, base)
    assert_same(sd15.started(AdapterConfig(), tensors), trained, base)


def test_diffsynth_file_acts_with_the_alpha_that_it_was_trained_with(sd15):
    """Its own loader would take 4 / 16 = 0.25 as factor; the file carries neither."""
    tensors, trained, base = sd15.trained(AdapterConfig(rank=16, alpha=4))
    names = {layer: name for name, layer in host._diffsynth_names(host.aliases(sd15.patcher))}
    kohya = {host.file_names(sd15.patcher, [layer])[layer].prefix: name for layer, name in names.items()}
    file = {}
    for key, value in tensors.items():
        prefix, _, suffix = key.partition(".")
        if suffix != "alpha":
            role = {"lora_down.weight": "lora_A", "lora_up.weight": "lora_B"}[suffix]
            file[f"{kohya[prefix]}.{role}.default.weight"] = value
    patched, _ = host.apply_lora(sd15.patcher, None, file, 1.0, 1.0, file_alpha=4)
    assert_same(sd15.patched(patched), trained, base)
    assert_same(sd15.started(AdapterConfig(), file, file_alpha=4), trained, base)


def test_custom_diffusion_trains_19_169_280_numbers_of_sd15():
    config = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": False,
        "context_dim": 768,
        "num_heads": 8,
        "use_spatial_transformer": True,
        "legacy": False,
    }
    net = UNetModel(**config, dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init)
    before = dict(net.named_modules())
    custom = AdapterConfig(kind="full", targets="kv", hold_first_token=True)
    with injected(net.requires_grad_(False), custom, seed=0) as adapter:
        assert len(adapter.layers) == 32
        assert all(re.search(r"\.attn2\.to_[kv]$", name) for name in adapter.layers)
        assert sum(p.numel() for p in adapter.parameters()) == 19_169_280
        assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 19_169_280
    assert all(net.get_submodule(name) is module for name, module in before.items())


def test_diffsynth_numbers_the_blocks_of_sdxl_as_its_source_lists_them():
    config = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 1, 1, 1, 1],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
        "channel_mult": [1, 2, 4],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": True,
        "context_dim": 2048,
        "num_head_channels": 64,
        "use_spatial_transformer": True,
        "legacy": False,
    }
    net = UNetModel(**config, dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init)
    layers = [k.removesuffix(".weight") for k in net.state_dict() if k.endswith(".weight")]
    names = dict(host._diffsynth_names(layers))
    expected = {
        7: "input_blocks.4.1",
        10: "input_blocks.5.1",
        15: "input_blocks.7.1",
        18: "input_blocks.8.1",
        21: "middle_block.1",
        25: "output_blocks.0.1",
        28: "output_blocks.1.1",
        31: "output_blocks.2.1",
        35: "output_blocks.3.1",
        38: "output_blocks.4.1",
        41: "output_blocks.5.1",
    }
    for number, block in expected.items():
        inner = f"{block}.transformer_blocks.0"
        assert names[f"blocks.{number}.transformer_blocks.0.attn1.to_out"] == f"{inner}.attn1.to_out.0"
        assert names[f"blocks.{number}.transformer_blocks.0.act_fn.proj"] == f"{inner}.ff.net.0.proj"
    assert {int(name.split(".")[1]) for name in names} == set(expected)


def test_separate_q_k_v_become_one_adapter_on_the_fused_layer(z_image):
    """Three LoRAs of ranks 2, 3 and 4 with alphas of their own are one of rank 9."""
    g = torch.Generator().manual_seed(0)
    file = {}
    for part, rank, alpha in (("to_q", 2, 1.0), ("to_k", 3, 6.0), ("to_v", 4, 4.0)):
        name = f"transformer.layers.1.attention.{part}"
        file[f"{name}.lora_A.weight"] = torch.randn(rank, 256, generator=g)
        file[f"{name}.lora_B.weight"] = 0.1 * torch.randn(256, rank, generator=g)
        file[f"{name}.alpha"] = torch.tensor(alpha)
    start = read_start(file, host.aliases(z_image.patcher), host.layer_shapes(z_image.patcher))
    assert dict(start.ranks) == {"layers.1.attention.qkv": 9}
    with torch.inference_mode(False), borrowed(z_image.patcher) as denoiser:
        base = z_image.output(denoiser)
    assert_same(z_image.started(AdapterConfig(), file), z_image.by_stock_loader(file), base)


def test_tensors_that_fit_nowhere_are_named(sd15):
    tensors, _, _ = sd15.trained(AdapterConfig(rank=2))
    odd = {f"lora_unet_elsewhere_{i}.lora_up.weight": torch.zeros(2, 2) for i in range(4)}
    message = (
        r"4 of the LoRA's \d+ tensors fit nothing in this model: lora_unet_elsewhere_0\.lora_up\.weight, "
    )
    with pytest.raises(LoraFileError, match=message):
        host.apply_lora(sd15.patcher, None, {**tensors, **odd}, 1.0, 1.0)
    with pytest.raises(LoraFileError, match=message):
        read_start({**tensors, **odd}, host.aliases(sd15.patcher), host.layer_shapes(sd15.patcher))


def test_a_file_of_another_family_is_refused(sd15, z_image):
    tensors, _, _ = z_image.trained(AdapterConfig(rank=2))
    with pytest.raises(
        LoraFileError, match=f"{len(tensors)} of the LoRA's {len(tensors)} tensors fit nothing"
    ):
        host.apply_lora(sd15.patcher, None, tensors, 1.0, 1.0)


def test_text_encoder_tensors_without_a_clip_are_a_notice(sd15):
    tensors, trained, base = sd15.trained(AdapterConfig(rank=2))
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    text = {f"{name}.lora_down.weight": torch.zeros(2, 768), f"{name}.lora_up.weight": torch.zeros(768, 2)}
    notices: list[str] = []
    patched, clip = host.apply_lora(sd15.patcher, None, {**tensors, **text}, 1.0, 1.0, notify=notices.append)
    assert clip is None
    assert notices == [
        "2 tensors of the LoRA are for the text encoder and were left out; connect clip to use them"
    ]
    assert_same(sd15.patched(patched), trained, base)


def test_a_starting_lora_of_another_size_is_refused(sd15):
    tensors, _, _ = sd15.trained(AdapterConfig(rank=2))
    key = next(k for k in tensors if k.endswith("lora_down.weight"))
    tensors[key] = tensors[key][:, :-1].clone()
    with pytest.raises(LoraFileError, match="is for .*, and the layer's weight is"):
        sd15.started(AdapterConfig(), tensors)


def test_text_encoder_layers_have_kohyas_names():
    class Clip:
        def __init__(self, model) -> None:
            self.cond_stage_model = model

    for cls, expected in (
        (comfy.sd1_clip.SD1ClipModel, {"clip_l": "lora_te_"}),
        (comfy.sdxl_clip.SDXLClipModel, {"clip_l": "lora_te1_", "clip_g": "lora_te2_"}),
    ):
        clip = Clip(cls(device="meta", dtype=torch.float32))
        for encoder, prefix in expected.items():
            layer = f"{encoder}.transformer.text_model.encoder.layers.3.mlp.fc1"
            name = host.text_file_names(clip, [layer])[layer].prefix
            assert name == f"{prefix}text_model_encoder_layers_3_mlp_fc1"


def test_quantised_layers_carry_adapters_beside_their_weight():
    ops = comfy.ops.mixed_precision_ops({}, torch.float32)
    net = torch.nn.Module()
    net.blocks = torch.nn.ModuleList([torch.nn.ModuleDict({"attn": torch.nn.ModuleDict()})])
    layer = ops.Linear(8, 8, dtype=torch.float32)
    layer.load_state_dict({"weight": torch.randn(8, 8), "bias": torch.zeros(8)})
    layer.requires_grad_(False)
    assert not isinstance(layer, torch.nn.Linear)
    net.blocks[0].attn.to_q = layer
    x = torch.randn(3, 8)
    before = layer(x)
    for kind in ADAPTER_KINDS:
        with injected(net, AdapterConfig(kind=kind, rank=2), seed=0) as adapter:
            assert torch.equal(net.blocks[0].attn.to_q(x), before)
            shaken(adapter)
            assert not torch.equal(net.blocks[0].attn.to_q(x), before)
        assert net.blocks[0].attn.to_q is layer


def test_lora_adapter_node_translates_its_widgets_into_a_config():
    schema = LoRAAdapter.define_schema()
    values = {i.id: i.default for i in schema.inputs}
    assert LoRAAdapter.execute(**values).args[0] == AdapterConfig()
    changed = {
        "kind": "dora",
        "targets": "regex",
        "target_regex": r" attn2\.to_k$ ",
        "start_from": "a.safetensors",
        "rank_by_block": "a=3",
    }
    config = LoRAAdapter.execute(**{**values, **changed}).args[0]
    assert config == AdapterConfig(
        kind="dora", targets=r"regex:attn2\.to_k$", start_from="a.safetensors", rank_by_block="a=3"
    )
    with pytest.raises(ConfigError, match="target_regex is empty"):
        LoRAAdapter.execute(**{**values, "targets": "regex"})


def test_lora_adapter_node_refuses_wrong_rules_before_the_run():
    assert LoRAAdapter.validate_inputs(rank_by_block="a=3", lr_by_block="") is True
    assert "'many' in 'a=many' is not a number" in LoRAAdapter.validate_inputs(rank_by_block="a=many")


def test_apply_lora_node_shows_what_was_left_out(sd15):
    tensors, _, _ = sd15.trained(AdapterConfig(rank=2))
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    text = {f"{name}.lora_down.weight": torch.zeros(2, 768), f"{name}.lora_up.weight": torch.zeros(768, 2)}
    given = {"model": sd15.patcher, "strength_model": 1.0, "strength_clip": 1.0}
    assert ApplyLoRA.execute(**given, lora=tensors).ui is None
    shown = ApplyLoRA.execute(**given, lora={**tensors, **text}).ui
    assert shown["text"][0].startswith("2 tensors of the LoRA are for the text encoder")
