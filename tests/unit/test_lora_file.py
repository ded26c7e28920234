"""LoRA files: names, metadata, reading, writing."""

from __future__ import annotations

import json
import os
import pickle
import struct
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from in_graph_lora.trainer.adapters.inject import injected, planned
from in_graph_lora.trainer.adapters.lora_file import file_tensors, read_lora, write_lora
from in_graph_lora.trainer.adapters.metadata import CONFIG, DORA_NORM, tag_frequency, training_metadata
from in_graph_lora.trainer.adapters.names import FileName, Rows, find, split_key
from in_graph_lora.trainer.adapters.readers import read_start, with_alpha
from in_graph_lora.trainer.adapters.shapes import LayerShape
from in_graph_lora.trainer.adapters.targets import target_layers
from in_graph_lora.trainer.config import AdapterConfig, TrainConfig
from in_graph_lora.trainer.errors import ConfigError, LoraFileError, StorageError
from in_graph_lora.trainer.files import copy_as_new

LAYER = "blocks.0.attn.to_q"
ALIASES = {LAYER: Rows(LAYER), "lora_unet_blocks_0_attn_to_q": Rows(LAYER)}
SHAPES = {LAYER: LayerShape(weight=(12, 12), bias=(12,))}


def make_net() -> nn.Module:
    net = nn.Module()
    net.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(12, 12)})})])
    return net.requires_grad_(False)


def lora(name: str = LAYER, rank: int = 2, **more) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        f"{name}.lora_A.weight": torch.randn(rank, 12, generator=g),
        f"{name}.lora_B.weight": torch.randn(12, rank, generator=g),
        **{f"{name}.{key}": value for key, value in more.items()},
    }


def boft() -> dict[str, torch.Tensor]:
    return {f"{LAYER}.oft_blocks": torch.zeros(1, 3, 4, 4), f"{LAYER}.alpha": torch.tensor(1.0)}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet_x.lora_down.weight", ("lora_unet_x", "lora_A")),
        ("unet.a.attn1.to_q.lora.up.weight", ("unet.a.attn1.to_q", "lora_B")),
        ("a.attn1.processor.to_q_lora.down.weight", ("a.attn1.processor.to_q", "lora_A")),
        ("base_model.model.a.lora_A.weight", ("base_model.model.a", "lora_A")),
        ("blocks.7.to_q.lora_B.default.weight", ("blocks.7.to_q", "lora_B")),
        ("text_encoder.q.lora_linear_layer.down.weight", ("text_encoder.q", "lora_A")),
        ("x.dora_scale", ("x", "dora_scale")),
        ("x.lora_magnitude_vector", ("x", "lora_magnitude_vector")),
        ("x.hada_w2_b", ("x", "hada_w2_b")),
        ("x.lokr_w1", ("x", "lokr_w1")),
        ("x.oft_blocks", ("x", "oft_blocks")),
        ("x.alpha", ("x", "alpha")),
        ("x.weight", None),
    ],
)
def test_a_tensors_name_is_a_layer_and_a_role(key, expected):
    assert split_key(key) == expected


def test_wrappers_in_front_of_a_layer_are_seen_through():
    for prefix in ("", "transformer.", "base_model.model.", "pipe.dit.", "unet.base_model.model."):
        assert find(prefix + LAYER, ALIASES) == Rows(LAYER)
    assert find("other." + LAYER, ALIASES) is None


@pytest.mark.parametrize("alpha", [None, 1.0, 3.0])
def test_rank_and_alpha_come_from_the_file_and_the_function_is_the_same(alpha):
    file = lora(rank=3, **({} if alpha is None else {"alpha": torch.tensor(alpha)}))
    start = read_start(file, ALIASES, SHAPES)
    net = make_net()
    x = torch.randn(4, 12)
    with injected(net, AdapterConfig(rank=16, alpha=8), seed=0, start=start) as adapter:
        change = adapter.layers[LAYER](x) - adapter.layers[LAYER].get_base_layer()(x)
    a, b = file[f"{LAYER}.lora_A.weight"], file[f"{LAYER}.lora_B.weight"]
    assert torch.allclose(change, (alpha or 3) / 3 * x @ (b @ a).T, atol=1e-5)


def test_starting_lora_decides_layers_and_kind_but_not_dropout():
    start = read_start(lora(), ALIASES, SHAPES)
    config = AdapterConfig(kind="lokr", targets="all linear", dropout=0.1)
    with injected(make_net(), config, seed=0, start=start) as adapter:
        assert adapter.config.kind == "lora"
        assert adapter.config.dropout == 0.1
        assert list(adapter.layers) == [LAYER]


def test_dora_of_others_is_over_the_merged_norm_and_ours_over_the_bases():
    scale = torch.rand(12, 1) + 0.5
    file = lora(dora_scale=scale)
    net = make_net()
    x = torch.randn(4, 12)
    base = net.get_submodule(LAYER)
    full = base.weight + file[f"{LAYER}.lora_B.weight"] @ file[f"{LAYER}.lora_A.weight"]
    ours = {DORA_NORM: "base"}
    unsaid = {CONFIG: "{}"}  # written before a file that went on from a DoRA said it
    for metadata, norm in (({}, full), (ours, base.weight), (unsaid, base.weight)):
        start = read_start(file, ALIASES, SHAPES, metadata=metadata)
        with injected(net, AdapterConfig(), seed=0, start=start) as adapter:
            assert adapter.config.kind == "dora"
            y = adapter.layers[LAYER](x)
        weight = full * scale / norm.norm(dim=1, keepdim=True)
        assert torch.allclose(y, nn.functional.linear(x, weight, base.bias), atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "alpha"),
    [
        ({"lokr_w1_a": (3, 2), "lokr_w1_b": (2, 3), "lokr_w2": (4, 4)}, 1.0),
        ({"lokr_w1": (3, 3), "lokr_w2": (4, 4)}, 5.0),
        ({"lokr_w1": (3, 3), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 4)}, 0.5),
        ({"lokr_w1_a": (3, 1), "lokr_w1_b": (1, 3), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 4)}, 2.0),
    ],
)
def test_every_way_to_factor_a_lokr_is_read_as_the_same_update(shapes, alpha):
    g = torch.Generator().manual_seed(0)
    t = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    file = {f"{LAYER}.{name}": value for name, value in t.items()} | {f"{LAYER}.alpha": torch.tensor(alpha)}
    w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    w2 = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    rank = next((t[n].shape[0] for n in ("lokr_w2_b", "lokr_w1_b") if n in t), alpha)
    x = torch.randn(4, 12)
    with injected(make_net(), AdapterConfig(), seed=0, start=read_start(file, ALIASES, SHAPES)) as adapter:
        change = adapter.layers[LAYER](x) - adapter.layers[LAYER].get_base_layer()(x)
    assert torch.allclose(change, alpha / rank * x @ torch.kron(w1, w2).T, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({}, "has no tensors"),
        (lora("nowhere"), r"2 of the LoRA's 2 tensors fit nothing in this model: nowhere\.lora_A\.weight"),
        ({f"{LAYER}.lora_A.weight": torch.zeros(2, 12)}, "has lora_A and no lora_B"),
        (lora(hada_w1_a=torch.zeros(12, 2)), "mixes the kinds loha, lora"),
        (lora(dora_scale=torch.ones(7, 1)), r"has a dora_scale of shape \[7, 1\] for a weight of 12 × 12"),
        (lora(dora_scale=torch.ones(1, 12)), "scales on the input side cannot be trained further"),
        (lora(alpha=torch.tensor(0.0)), "has alpha 0 in the starting LoRA"),
        (boft(), "not BOFT or COFT"),
        ({f"{LAYER}.set_weight": torch.zeros(12, 12)}, "cannot go on from a LoRA with .*set_weight"),
        ({f"{LAYER}.diff_b": torch.zeros(12)}, "has nothing that an adapter can hold"),
        ({f"{LAYER}.alpha": torch.tensor(1.0)}, "has alpha and nothing that it belongs to"),
        ({**lora(), **lora("lora_unet_blocks_0_attn_to_q")}, "under several names"),
        ({**lora(), f"{LAYER}.lora_down.weight": torch.zeros(2, 12)}, "has lora_A twice"),
    ],
)
def test_a_starting_file_that_cannot_be_used_whole_is_refused(file, message):
    with pytest.raises(LoraFileError, match=message):
        read_start(file, ALIASES, SHAPES)


def test_changes_of_norms_and_biases_are_left_out_and_named():
    file = lora(diff_b=torch.ones(12))
    start = read_start(file, ALIASES, SHAPES)
    assert start.left_out == (f"{LAYER}.diff_b",)
    assert set(start.layers[LAYER]) == {"lora_A", "lora_B"}


def test_what_is_for_a_layer_that_carries_no_adapter_is_left_out_and_named():
    aliases = {**ALIASES, "embedding": Rows("embedding")}
    shapes = {**SHAPES, "embedding": LayerShape(weight=(12, 12), adaptable=False)}
    start = read_start({**lora(), **lora("embedding")}, aliases, shapes)
    assert list(start.layers) == [LAYER]
    assert start.left_out == ("embedding.lora_A", "embedding.lora_B")


@pytest.mark.parametrize("flat", [True, False])
def test_a_convolutions_lora_is_read_flat_or_with_its_kernel(flat):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 3, 3, generator=g), torch.randn(6, 2, 1, 1, generator=g)
    file = {
        "conv.lora_down.weight": a.flatten(1) if flat else a,
        "conv.lora_up.weight": b.flatten(1) if flat else b,
    }
    start = read_start(file, {"conv": Rows("conv")}, {"conv": LayerShape(weight=(6, 4, 3, 3))})
    assert torch.equal(start.layers["conv"]["lora_A"], a)
    assert torch.equal(start.layers["conv"]["lora_B"], b)


def test_alpha_is_given_only_to_layers_that_have_none():
    file = {**lora("a"), **lora("b", alpha=torch.tensor(1.0))}
    out = with_alpha(file, 4)
    assert out["a.alpha"].item() == 4
    assert out["b.alpha"].item() == 1
    assert "a.alpha" not in file


def test_kohya_names_come_with_alpha_and_dotted_names_with_the_scale_folded_in():
    net = make_net()
    config = AdapterConfig(kind="rslora", rank=4, alpha=6)
    with injected(net, config, seed=0) as adapter:
        adapter.parameters()[1].data += 1
        kohya = file_tensors(adapter, {LAYER: FileName("lora_unet_x")})
        dotted = file_tensors(adapter, {LAYER: FileName("diffusion_model.x")})
        parts = (("transformer.x.to_q", 0, 5), ("transformer.x.to_k", 5, 7))
        split = file_tensors(adapter, {LAYER: FileName("", parts)})
    assert set(kohya) == {f"lora_unet_x.{s}" for s in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert kohya["lora_unet_x.alpha"].item() == pytest.approx(6 / 4**0.5 * 4)
    assert set(dotted) == {"diffusion_model.x.lora_A.weight", "diffusion_model.x.lora_B.weight"}
    assert torch.equal(dotted["diffusion_model.x.lora_B.weight"], kohya["lora_unet_x.lora_up.weight"] * 3)
    rows = [split[f"{prefix}.lora_B.weight"] for prefix, _, _ in parts]
    assert torch.equal(torch.cat(rows), dotted["diffusion_model.x.lora_B.weight"])


def test_diffusers_names_are_refused_for_kinds_that_diffusers_cannot_read():
    with (
        injected(make_net(), AdapterConfig(kind="lokr"), seed=0) as adapter,
        pytest.raises(LoraFileError, match="diffusers cannot read kind lokr"),
    ):
        file_tensors(adapter, {LAYER: FileName("unet.x")})


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft", "full"])
def test_what_diffusers_cannot_read_is_refused_before_training(kind):
    config = AdapterConfig(kind=kind, rank=2, targets=f"regex:{LAYER}", file_names="diffusers")
    with pytest.raises(ConfigError, match=f"diffusers cannot read kind {kind}; set file_names to comfyui"):
        planned(make_net(), config)


def test_metadata_says_what_other_tools_show_and_holds_the_whole_config():
    config = TrainConfig(name="cat", adapter=AdapterConfig(kind="dora", rank=8, alpha=4))
    entries = training_metadata(
        config.to_dict(),
        base_model="sd_v1",
        steps=7,
        alpha=4.0,
        rank=8,
        dataset_digest="d1",
        base_hash="0123456789abcdef",
        trigger="sks",
        tags=["sks, cat", "sks, sofa"],
        prediction="epsilon",
        date=datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    )
    assert all(isinstance(v, str) and v for v in entries.values())
    expected = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_base_model_version": "sd_v1",
        "ss_steps": "7",
        "ss_sd_model_hash": "01234567",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "cat",
        "modelspec.date": "2030-01-02T03:04:05",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "sks",
        "in_graph_lora.dataset": "d1",
        DORA_NORM: "base",
    }
    assert {key: entries[key] for key in expected} == expected
    assert json.loads(entries["ss_network_args"]) == {"algo": "locon", "dora_wd": "True"}
    assert json.loads(entries["ss_tag_frequency"]) == {"dataset": {"sks": 2, "cat": 1, "sofa": 1}}
    assert TrainConfig.from_dict(json.loads(entries["in_graph_lora.config"])) == config


def test_a_file_of_whole_changes_says_no_rank():
    config = TrainConfig(adapter=AdapterConfig(kind="full")).to_dict()
    entries = training_metadata(config, base_model="sd_v1", steps=1, alpha=1.0, rank=1)
    assert not {"ss_network_dim", "ss_network_alpha"} & entries.keys()
    assert json.loads(entries["ss_network_args"]) == {"algo": "full"}


def test_tags_are_counted_over_captions():
    assert tag_frequency(["a, b ,", "b"]) == {"a": 1, "b": 2}


def test_written_file_reads_back_exactly_with_a_hash_of_its_tensors(tmp_path: Path):
    path = tmp_path / "sub" / "x.safetensors"
    tensors = lora()
    write_lora(tensors, path, {"ss_steps": "3"})
    back, metadata = read_lora(path)
    assert all(torch.equal(back[k], v) for k, v in tensors.items())
    assert metadata["ss_steps"] == "3"
    assert metadata["modelspec.hash_sha256"].startswith("0x")
    assert list(path.parent.iterdir()) == [path]
    with safe_open(path, framework="pt") as f:
        assert set(f.keys()) == set(tensors)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("here")
    with pytest.raises(StorageError, match="cannot be written"):
        write_lora(lora(), blocked / "x.safetensors", {})
    assert list(tmp_path.iterdir()) == [blocked]


def header(text: str, length: int | None = None) -> bytes:
    """The start of a safetensors file: the header's length (a lie if given), and the header."""
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


def tensor(dtype: str, shape: list[int], end: int, start: int = 0) -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{start}, {end}]}}'


UNREADABLE = {
    "empty": b"",
    "text": b"not a tensor in sight",
    "zeros": bytes(100),
    "header of 4 EB": header("{}", 2**62),
    "header of 99 MB": header("{}", 99_000_000),
    "header longer than the file": header("{}", 50),
    "header without JSON": header("????"),
    "header is a list": header("[]"),
    "header is cut": header('{"a.lora_A.weight": {"dtype":'),
    "metadata of numbers": header('{"__metadata__": {"a": 1}}'),
    "unknown dtype": header(f'{{"a.lora_A.weight": {tensor("F7", [1], 1)}}}') + bytes(1),
    "dtype that torch lacks": header(f'{{"a.lora_A.weight": {tensor("F6_E2M3", [4], 3)}}}') + bytes(3),
    "data is missing": header(f'{{"a.lora_A.weight": {tensor("F32", [4], 16)}}}'),
    "data of another size": header(f'{{"a.lora_A.weight": {tensor("F32", [5], 16)}}}') + bytes(16),
    "negative size": header(f'{{"a.lora_A.weight": {tensor("F32", [-1], 4)}}}') + bytes(4),
    "4 EB of data": header(f'{{"a.lora_A.weight": {tensor("F32", [2**60], 2**62)}}}'),
    "size that overflows": header(f'{{"a.lora_A.weight": {tensor("F32", [2**62, 4, 0], 0)}}}'),
    "tensors on top of each other": header(
        f'{{"a.lora_A.weight": {tensor("F32", [4], 16)}, "b.lora_A.weight": {tensor("F32", [4], 20, 4)}}}'
    )
    + bytes(20),
    "pickle": pickle.dumps({"a.lora_A.weight": [1.0]}),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_is_no_safetensors_file_is_refused_in_one_sentence(tmp_path: Path, what):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(UNREADABLE[what])
    with pytest.raises(
        LoraFileError, match=r"bad\.safetensors is not a readable safetensors file \(.*\); choose"
    ):
        read_lora(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused_in_one_sentence(tmp_path: Path, part):
    path = tmp_path / "x.safetensors"
    write_lora(lora(), path, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(LoraFileError, match="not a readable safetensors file"):
        read_lora(path)


def _nothing(path: Path) -> None:
    """No file at all."""


@pytest.mark.skipif(os.name == "nt", reason="links and pipes need other rights")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, "does not exist"),
        (lambda path: path.symlink_to(path.with_name("gone")), "is a link to nothing"),
        (lambda path: path.symlink_to(path), "is a link to nothing"),
        (Path.mkdir, "is a folder"),
        (lambda path: os.mkfifo(path), "is no regular file"),
    ],
)
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path, make, message):
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(LoraFileError, match=message):
        read_lora(path)


def test_a_taken_name_gets_a_number_also_when_it_is_taken_at_the_last_moment(tmp_path: Path):
    source = tmp_path / "source.safetensors"
    source.write_bytes(b"new")
    taken = [tmp_path / "x.safetensors", tmp_path / "x_2.safetensors", tmp_path / "x_3.safetensors"]
    taken[0].write_bytes(b"old")
    told = []

    def before(path: Path) -> None:
        told.append(path)
        if path == taken[1]:
            path.write_bytes(b"old")

    assert copy_as_new(source, tmp_path, "x", before) == taken[2]
    assert told == taken[1:]
    assert [path.read_bytes() for path in taken] == [b"old", b"old", b"new"]
    assert sorted(tmp_path.iterdir()) == sorted([source, *taken])


def named(*names: str) -> nn.Module:
    """A network with a linear layer of each name."""
    net = nn.Module()
    for name in names:
        *parents, leaf = name.split(".")
        at = net
        for parent in parents:
            if parent not in at._modules:
                at.add_module(parent, nn.Module())
            at = at._modules[parent]
        at.add_module(leaf, nn.Linear(2, 2))
    return net


UNET = "output_blocks.3.1.transformer_blocks.0."
SELECTIONS = {
    "cross-attention": {
        UNET + "attn2.to_q": True,
        UNET + "attn1.to_q": False,
        "blocks.0.cross_attn.o": True,
        "blocks.0.self_attn.o": False,
        "blocks.1.attn2.kv_proj": True,
        "joint_blocks.0.x_block.attn2.qkv": False,
    },
    "kv": {
        UNET + "attn2.to_k": True,
        UNET + "attn2.to_v": True,
        UNET + "attn2.to_q": False,
        UNET + "attn2.to_out.0": False,
        "blocks.0.cross_attn.k_img": True,
        "blocks.0.cross_attn.kv_linear": True,
        "blocks.0.self_attn.k": False,
    },
    "attention": {
        UNET + "attn1.to_out.0": True,
        UNET + "ff.net.0.proj": False,
        "joint_blocks.0.x_block.attn2.qkv": True,
        "double_blocks.0.img_attn.proj": True,
        "single_blocks.0.linear1": True,
        "layers.0.attention.qkv": True,
        "double_blocks.0.attn.img_attn_qkv": True,
        "double_layers.0.attn.w1q": True,
        "blocks.0.q": True,
        "blocks.0.attn.gate": False,
        "layers.0.attention_norm.linear": False,
        "t_embedder.0.attn": False,
        "attn.to_q": False,
    },
    "attention+feed-forward": {
        UNET + "ff.net.0.proj": True,
        "single_blocks.0.linear1": True,
        "single_blocks.0.linear2": True,
        "single_blocks.0.modulation.lin": False,
        "layers.0.feed_forward.w1": True,
        "double_blocks.0.txt_mlp.2": True,
        "blocks.0.ffn.0": True,
        "blocks.0.adaLN_modulation.1": False,
        "double_layers.0.mlpX.c_fc1": True,
        "blocks.0.adaln_modulation_mlp.1": False,
        "block.ff.0": False,
    },
    "all linear": {"blocks.0.adaLN_modulation.1": True, "final_layer.linear": False, "img_in": False},
    r"regex:img_in|mod\.": {"img_in": True, "blocks.0.mod.lin": True, "blocks.0.attn.q": False},
}


@pytest.mark.parametrize("targets", SELECTIONS)
def test_targets_select_by_the_names_of_every_family(targets):
    names = SELECTIONS[targets]
    found = target_layers(named(*names), targets)
    assert {name: name in found for name in names} == names
