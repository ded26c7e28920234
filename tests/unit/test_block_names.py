"""Blocks by name in rules, with expected factors from sd-scripts' documentation of network_args."""

from __future__ import annotations

import math

import pytest

from in_graph_lora.trainer.block_names import block_counts, block_of, listed
from in_graph_lora.trainer.config import AdapterConfig
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.rules import Rules, expressions_of, selections
from in_graph_lora.trainer.trained import for_text_encoder

UNET = [
    "time_embed.0",
    "input_blocks.0.0",
    *(f"input_blocks.{i}.1.transformer_blocks.0.attn1.to_q" for i in range(1, 12)),
    *(f"middle_block.{i}.in_layers.2" for i in range(3)),
    *(f"output_blocks.{i}.0.in_layers.2" for i in range(12)),
    "out.2",
]
FLUX = [
    *(f"double_blocks.{i}.img_mlp.0" for i in range(19)),
    *(f"single_blocks.{i}.linear1" for i in range(38)),
]


def factors(text: str, layers: list[str] = UNET, field: str = "lr_by_block") -> dict[tuple[str, int], float]:
    rules = Rules.parse(text, field).settled(layers)
    return {at: rules.value(name, 1.0) for name in layers if (at := block_of(name))}


def of(found: dict[tuple[str, int], float], module: str) -> list[float]:
    return [value for (m, _), value in found.items() if m == module]


def test_layers_outside_of_blocks_are_in_none():
    assert [block_of(name) for name in ("time_embed.0", "input_blocks.0.0", "out.2")] == [None] * 3
    assert block_of("input_blocks.4.1.proj_in") == ("input_blocks", 4)
    assert block_of("txtfusion.refiner_blocks.1.attn.qkv") == ("txtfusion.refiner_blocks", 1)
    assert block_of("blocks.block3.mlp.0") == ("blocks", 3)
    assert listed(block_counts(UNET)) == "down 0-11, mid 0-2, up 0-11"
    assert listed(block_counts(FLUX)) == "double 0-18, single 0-37"


def test_blocks_by_name_have_one_factor_or_one_each():
    found = factors("down=0.5\nup 3-5, 11=0\nmid=1,2,3\nup=0.25")
    assert of(found, "input_blocks") == [0.5] * 11
    assert of(found, "middle_block") == [1, 2, 3]
    assert of(found, "output_blocks") == [0.25] * 3 + [0] * 3 + [0.25] * 5 + [0]


def test_network_args_of_sd_scripts_are_taken_as_they_are():
    found = factors(
        '"down_lr_weight=0,0,0,0,0,0,1,1,1,1,1,1"\n"mid_lr_weight=0.5"\nup_lr_weight=1,1,1,1,1,1,,,,,,.1\n'
        "block_lr_zero_threshold=0.1"
    )
    assert of(found, "input_blocks") == [0] * 5 + [1] * 6  # block 0 is the first convolution
    assert of(found, "middle_block") == [0.5] * 3
    assert of(found, "output_blocks") == [1] * 6 + [0] * 6


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        ("sine", lambda i: math.sin(math.pi / 2 * i / 11)),
        ("cosine", lambda i: math.sin(math.pi / 2 * (11 - i) / 11)),
        ("linear", lambda i: i / 11),
        ("reverse_linear", lambda i: (11 - i) / 11),
        ("zeros", lambda _: 0),
    ],
)
def test_shapes_are_those_of_sd_scripts(shape, value):
    assert of(factors(f"up_lr_weight={shape}"), "output_blocks") == pytest.approx(
        [value(i) for i in range(12)]
    )
    expected = [value(i) + 0.25 for i in range(12)]
    assert of(factors(f"up={shape}+0.25"), "output_blocks") == pytest.approx(expected)


def test_blocks_of_transformers_go_by_their_own_name_and_number():
    found = factors("double_blocks 0,7=2\nsingle 30-37=0.5\nrest=0", FLUX)
    assert {at: v for at, v in found.items() if v} == {
        ("double_blocks", 0): 2,
        ("double_blocks", 7): 2,
        **{("single_blocks", i): 0.5 for i in range(30, 38)},
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("single=0", r"this model has no blocks named 'single'; it has down 0-11, mid 0-2, up 0-11"),
        ("layers 3=0", "no blocks named 'layers'"),
        ("up 12=0", "'up 12' counts further than this model, which has down 0-11"),
        ("up 5-3=0", "'up 5-3' has numbers that are none; write them as 0-5,10"),
        ("up 3,=0", "has numbers that are none"),
        ("up=1,2,3", "'up=1,2,3' has 3 numbers for 12 blocks; write one for each or one for all"),
        ("rest=1,2", "'rest=1,2' has 2 numbers for 1 blocks"),
        ("a|b=1,2", r"'a\|b=1,2' has a number for each block, but names none"),
        ("up=sines", "'sines' in 'up=sines' is not a number"),
        ("up=1,x", "'x' in 'up=1,x' is not a number"),
    ],
)
def test_a_name_or_a_count_that_does_not_fit_is_told(line, words):
    with pytest.raises(ConfigError, match=words):
        factors(line)


def test_settings_are_checked_before_there_is_a_model():
    with pytest.raises(ConfigError, match="lr_by_block has the factor -1"):
        AdapterConfig(lr_by_block="up=1,-1")
    with pytest.raises(ConfigError, match="rank_by_block: 'up=sine' is for learning rates"):
        AdapterConfig(rank_by_block="up=sine")
    with pytest.raises(ConfigError, match="rank_by_block has the rank 0"):
        AdapterConfig(rank_by_block="up=4,,4")
    with pytest.raises(ConfigError, match="blocks has the line 'rest'"):
        AdapterConfig(blocks="rest")
    assert [s.text for s in selections("# a remark\nup 3-5\n\nattn2", "blocks")] == ["up 3-5", "attn2"]


def test_a_text_encoder_has_none_of_these_blocks():
    text = "up=0\nlayers\\.3=0.5\nrest=0"
    assert expressions_of(text) == "layers\\.3=0.5"
    adapter = for_text_encoder(AdapterConfig(lr_by_block=text, rank_by_block="mid=2", blocks="up", rank=8))
    assert (adapter.lr_by_block, adapter.rank_by_block, adapter.blocks) == ("layers\\.3=0.5", "", "")
    assert adapter.rank == 8
