"""Names of blocks in ComfyUI's networks of full size, which have no values."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from in_graph_lora.trainer.adapters.inject import planned
from in_graph_lora.trainer.adapters.targets import is_convolution, is_linear
from in_graph_lora.trainer.block_names import Blocks, block_counts, block_of, in_block
from in_graph_lora.trainer.config import AdapterConfig
from in_graph_lora.trainer.errors import ConfigError
from workbench.bench.models import MODELS

EXPECTED = {
    "sd15": {"down": 12, "mid": 3, "up": 12},
    "sdxl": {"down": 9, "mid": 3, "up": 9},
    "flux": {"double": 19, "single": 38},
}
"""As sd-scripts counts them: 12 + 1 + 12 with one factor for all of mid, 9 + 3 + 9, 19 and 38."""
OUTSIDE = {"label_emb"}  # two layers of SDXL's size embedding, which are numbered too


@pytest.fixture(scope="module", params=EXPECTED)
def named(request):
    return request.param, MODELS[request.param].empty(torch.float32).diffusion_model


def test_the_names_partition_the_layers_of_all_blocks(named):
    name, net = named
    layers = [n for n, m in net.named_modules() if is_linear(m) or is_convolution(m)]
    counts = block_counts(layers)
    parts = {n: Blocks.parse(n, "blocks").settled(counts) for n in EXPECTED[name]}
    assert {n: counts[part.module] for n, part in parts.items()} == EXPECTED[name]
    found = {layer: [n for n, part in parts.items() if part.found_in(layer)] for layer in layers}
    inside = [n for n in layers if in_block(n) and n.split(".")[0] not in OUTSIDE]
    assert {layer for layer, names in found.items() if names} == set(inside)
    assert max(map(len, found.values())) == 1
    numbers = {at for layer in inside if (at := block_of(layer))}
    first = (
        {("input_blocks", 0)} if "down" in parts else set()
    )  # the first convolution: no LoRA in sd-scripts
    assert len(numbers | first) == sum(EXPECTED[name].values())


def test_each_block_gets_its_rank_and_rate(named):
    name, net = named
    part, count = next(iter(EXPECTED[name].items()))
    rates = f"{part}={','.join(str(i) for i in range(count))}\nrest=0"
    config = AdapterConfig(targets="all linear + conv", lr_by_block=rates, rank_by_block=f"{part} 1-2=4")
    plans = planned(net, config)
    module = next(b.module for b in [Blocks.parse(part, "").settled(block_counts(plans))])
    for layer, plan in plans.items():
        at = block_of(layer)
        inside = at is not None and at[0] == module
        assert plan.factor == (at[1] if inside else 0)
        assert plan.rank == (4 if inside and at[1] in (1, 2) else 16)


def test_blocks_that_are_named_are_all_that_gets_an_adapter(named):
    name, net = named
    last, count = list(EXPECTED[name].items())[-1]
    whole = planned(net, AdapterConfig())
    some = planned(net, AdapterConfig(blocks=f"{last} 3,5\n{last} 4"))
    module = block_of(list(whole)[-1])[0]
    assert list(some) == [n for n in whole if block_of(n) in [(module, i) for i in (3, 4, 5)]]
    assert len(Counter(map(block_of, some))) == 3
    with pytest.raises(ConfigError, match=rf"blocks: '{last} {count}' counts further than this model"):
        planned(net, AdapterConfig(blocks=f"{last} {count}"))
    with pytest.raises(
        ConfigError, match="blocks: 'dwn' is found in none of the .* layers of targets 'atten"
    ):
        planned(net, AdapterConfig(blocks="dwn"))
    with pytest.raises(ConfigError, match="lr_by_block: this model has no blocks named 'layers'; it has "):
        planned(net, AdapterConfig(lr_by_block="layers 1=0"))
