"""Adapters inside a small network of plain torch layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from in_graph_lora.trainer.adapters.inject import Adapter, injected, planned
from in_graph_lora.trainer.adapters.layers import adapter_parameters
from in_graph_lora.trainer.adapters.start import dora_norms
from in_graph_lora.trainer.config import ADAPTER_KINDS, AdapterConfig
from in_graph_lora.trainer.errors import ConfigError, LoraFileError, ModelError

LORA_KINDS = ("lora", "locon", "rslora", "dora")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.to_q = nn.Linear(12, 12)
        self.attn.to_out = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Identity())
        self.ff = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.conv = nn.Conv2d(12, 8, 3, padding=1)
        self.conv_out = nn.Conv2d(8, 12, 1)

    def forward(self, x):
        x = x + self.attn.to_out(torch.tanh(self.attn.to_q(x)))
        x = x + self.ff(x)
        picture = x.transpose(1, 2).unflatten(2, (4, 4))
        return x + self.conv_out(torch.tanh(self.conv(picture))).flatten(2).transpose(1, 2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 12)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


def make_net(dtype=torch.float32) -> Net:
    torch.manual_seed(0)
    net = Net().to(dtype)
    net.requires_grad_(False)
    return net


def config(kind: str = "lora", **values) -> AdapterConfig:
    return AdapterConfig(**{"kind": kind, "rank": 4, "targets": "all linear + conv", **values})


def shaken(adapter: Adapter, size: float = 0.1) -> None:
    """Weights as after some training."""
    generator = torch.Generator().manual_seed(5)
    for p in adapter.parameters():
        p.data += size * torch.randn(p.shape, generator=generator)


X = torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_untrained_adapter_leaves_output_bitwise_unchanged(kind, dtype):
    net = make_net(dtype)
    x = X.to(dtype)
    before = net(x)
    half = dtype if dtype != torch.float32 else None
    with injected(net, config(kind), seed=0, compute_dtype=half) as adapter:
        assert len(adapter.layers) == 12
        assert torch.equal(net(x), before)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_exit_restores_the_same_module_objects(kind):
    net = make_net()
    before = dict(net.named_modules())
    keys = list(net.state_dict())

    def interrupted() -> None:
        with injected(net, config(kind), seed=0) as adapter:
            shaken(adapter)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = dict(net.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert list(net.state_dict()) == keys
    assert not hasattr(net, "peft_config")
    assert all("forward" not in m.__dict__ for m in net.modules())


def test_a_layer_that_cannot_carry_an_adapter_leaves_the_network_as_it_was():
    net = make_net()
    net.blocks[1].volume = nn.Conv3d(3, 3, 1)
    before = dict(net.named_modules())
    with (
        pytest.raises(ModelError, match=r"cannot carry an adapter of kind loha"),
        injected(net, config("loha"), seed=0),
    ):
        pass
    assert all(module is before[name] for name, module in net.named_modules())


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_half_precision_base_gives_fp32_adapters_and_an_output_in_the_bases_dtype(kind):
    net = make_net(torch.bfloat16)
    with injected(net, config(kind), seed=0, compute_dtype=torch.bfloat16) as adapter:
        shaken(adapter)
        y = net(X.bfloat16())
        assert y.dtype == torch.bfloat16
        y.float().square().mean().backward()
        for p in adapter.parameters():
            assert p.dtype == torch.float32
            assert p.grad is not None
            assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_half_precision_training_follows_fp32(kind):
    """The same adapter weights give, in bf16, the fp32 change of the output to bf16's precision."""
    changes = []
    for dtype in (torch.float32, torch.bfloat16):
        net = make_net(torch.bfloat16).to(dtype)
        base = net(X.to(dtype)).float()
        half = dtype if dtype != torch.float32 else None
        with injected(net, config(kind), seed=0, compute_dtype=half) as adapter:
            shaken(adapter, 0.5 if kind in ("loha", "lokr") else 0.1)
            changes.append(net(X.to(dtype)).float() - base)
    exact, half_precision = changes
    assert (half_precision - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_initial_weights_depend_on_the_seed_and_not_on_the_bases_dtype(kind, init):
    states = []
    for dtype, seed in (
        (torch.float32, 3),
        (torch.bfloat16, 3),
        (torch.float8_e4m3fn, 3),
        (torch.float32, 4),
    ):
        net = make_net(dtype)
        with injected(net, config(kind, init=init), seed=seed) as adapter:
            states.append(adapter.state_dict())
    one, bf16, fp8, other = ({k: v for k, v in s.items() if "magnitude" not in k} for s in states)
    assert all(torch.equal(one[k], bf16[k]) and torch.equal(one[k], fp8[k]) for k in one)
    assert kind in ("oft", "full") or any(not torch.equal(one[k], other[k]) for k in one)


def test_global_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with injected(make_net_without_seed(), config(), seed=0):
        pass
    torch.manual_seed(7)
    with injected(_NET, config(), seed=0):
        pass
    assert torch.equal(torch.rand(3), expected)


_NET = make_net()


def make_net_without_seed() -> Net:
    return _NET


def test_choosing_more_layers_does_not_change_the_start_of_the_others():
    net = make_net()
    with injected(net, config(targets="attention"), seed=0) as adapter:
        few = adapter.state_dict()
    with injected(net, config(), seed=0) as adapter:
        many = adapter.state_dict()
    assert len(few) == 8
    assert all(torch.equal(few[k], many[k]) for k in few)


def test_gaussian_a_has_the_deviation_one_over_rank():
    net = nn.Module()
    net.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(4096, 8)})})])
    with injected(net, AdapterConfig(rank=16), seed=0) as adapter:
        a = adapter.state_dict()["blocks.0.attn.to_q.lora_A"]
    assert a.std().item() == pytest.approx(1 / 16, rel=0.01)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_disabled_adapter_is_the_untouched_network(kind):
    net = make_net()
    before = net(X)
    with injected(net, config(kind), seed=0) as adapter:
        shaken(adapter)
        trained = net(X)
        with torch.no_grad(), adapter.disabled():
            assert torch.equal(net(X), before)
        assert torch.equal(net(X), trained)
        assert not torch.equal(trained, before)
        assert all(p.requires_grad for p in adapter.parameters())


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_state_dict_loads_back_exactly(kind):
    net = make_net()
    with injected(net, config(kind), seed=0) as adapter:
        shaken(adapter)
        state, y = adapter.state_dict(), net(X)
    with injected(net, config(kind), seed=99) as adapter:
        adapter.load_state_dict(state)
        assert torch.equal(net(X), y)
        again = adapter.state_dict()
        assert again.keys() == state.keys()
        assert all(torch.equal(again[k], state[k]) for k in state)


def test_state_of_another_adapter_is_refused():
    net = make_net()
    with injected(net, config(rank=2), seed=0) as adapter:
        state = adapter.state_dict()
    with injected(net, config(), seed=0) as adapter:
        with pytest.raises(LoraFileError, match="does not belong to this adapter"):
            adapter.load_state_dict(state)
        with pytest.raises(LoraFileError, match="does not belong to this adapter"):
            adapter.load_state_dict({})


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_groups_partition_all_parameters(kind):
    rules = r"blocks\.0=0.5"
    with injected(make_net(), config(kind, lr_by_block=rules), seed=0) as adapter:
        ratio = 16.0 if kind in LORA_KINDS else 1.0
        groups = adapter.parameter_groups(1e-3, ratio)
        grouped = [id(p) for g in groups for p in g["params"]]
        assert sorted(grouped) == sorted(id(p) for p in adapter.parameters())
        assert len(set(grouped)) == len(grouped)
        rate = {id(p): g["lr"] for g in groups for p in g["params"]}
        for name, layer in adapter.layers.items():
            for key, p in adapter_parameters(layer):
                factor = 0.5 if name.startswith("blocks.0") else 1.0
                plus = ratio if key == "lora_B" else 1.0
                assert rate[id(p)] == pytest.approx(1e-3 * factor * plus)


def test_lora_plus_without_a_b_matrix_is_refused():
    with (
        injected(make_net(), config("lokr"), seed=0) as adapter,
        pytest.raises(ConfigError, match="kind is lokr, which has no B"),
    ):
        adapter.parameter_groups(1e-3, 16.0)


def test_factor_zero_freezes_a_layer_and_keeps_it_in_the_state():
    net = make_net()
    with injected(net, config(lr_by_block="attn=0"), seed=0) as adapter:
        net(X).square().mean().backward()
        frozen = [layer for name, layer in adapter.layers.items() if "attn" in name]
        assert frozen
        assert all(p.grad is None for layer in frozen for _, p in adapter_parameters(layer))
        assert any("attn" in key for key in adapter.state_dict())
        trained = {id(p) for p in adapter.parameters()}
        assert all(id(p) not in trained for layer in frozen for _, p in adapter_parameters(layer))


def test_freezing_every_layer_is_refused():
    with (
        pytest.raises(ConfigError, match="freezes every layer"),
        injected(make_net(), config(lr_by_block=".*=0"), seed=0),
    ):
        pass


@pytest.mark.parametrize("kind", LORA_KINDS)
def test_first_matching_rule_decides_the_rank_of_a_layer(kind):
    rules = "# wide where it matters\nblocks\\.1\\.attn=8\nattn=2\n"
    with injected(make_net(), config(kind, rank_by_block=rules), seed=0) as adapter:
        state = adapter.state_dict()
    assert state["blocks.1.attn.to_q.lora_A"].shape[0] == 8
    assert state["blocks.0.attn.to_q.lora_A"].shape[0] == 2
    assert state["blocks.0.ff.0.lora_A"].shape[0] == 4


def test_rank_rules_match_whole_layers_even_when_one_name_ends_like_another():
    net = nn.Module()
    net.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(8, 8)})})])
    net.refiner = nn.ModuleDict({"blocks": nn.ModuleList([net.blocks[0]])})
    net.refiner.blocks[0] = nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(8, 8)})})
    with injected(net, AdapterConfig(rank=4, rank_by_block="^blocks=2"), seed=0) as adapter:
        state = adapter.state_dict()
    assert state["blocks.0.attn.to_q.lora_A"].shape[0] == 2
    assert state["refiner.blocks.0.attn.to_q.lora_A"].shape[0] == 4


def test_update_is_alpha_over_rank_times_b_a_and_for_rslora_over_the_root_of_the_rank():
    for kind, scale in (("lora", 2 / 4), ("rslora", 2 / 4**0.5)):
        net = make_net()
        layer = net.blocks[0].attn.to_q
        with injected(net, config(kind, alpha=2.0), seed=0) as adapter:
            shaken(adapter)
            state = adapter.state_dict()
            change = adapter.layers["blocks.0.attn.to_q"](X) - layer(X)
        a, b = (state[f"blocks.0.attn.to_q.lora_{m}"] for m in "AB")
        assert torch.allclose(change, scale * X @ (b @ a).T, atol=1e-6)


def test_dora_has_rows_of_the_trained_magnitude():
    net = make_net()
    with injected(net, config("dora"), seed=0) as adapter:
        shaken(adapter)
        layer = adapter.layers["blocks.0.ff.0"]
        merged, base = dora_norms(layer)
        own = dict(adapter_parameters(layer))
        full = layer.get_base_layer().weight + own["lora_B"] @ own["lora_A"]
        weight = full / merged[:, None] * own["lora_magnitude_vector"][:, None]
        expected = nn.functional.linear(X, weight, layer.get_base_layer().bias)
        assert torch.allclose(layer(X), expected, atol=1e-5)
        assert not torch.allclose(merged, base)


def test_oft_turns_rows_without_changing_their_lengths_in_a_block():
    net = make_net()
    with injected(net, config("oft"), seed=0) as adapter:
        shaken(adapter)
        r = adapter.layers["blocks.0.attn.to_q"].rotation_minus_identity() + torch.eye(4)
    assert torch.allclose(r @ r.transpose(1, 2), torch.eye(4).expand_as(r), atol=1e-5)


def test_oft_blocks_are_the_largest_divisor_up_to_the_rank():
    with injected(make_net(), config("oft", rank=5), seed=0) as adapter:
        assert adapter.state_dict()["blocks.0.attn.to_q.oft_blocks"].shape == (3, 4, 4)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_dropout_draws_depend_on_seed_and_step_alone(kind):
    net = make_net()
    with injected(net, config(kind, dropout=0.5), seed=0) as adapter:
        shaken(adapter, 0.5)

        def at(step: int) -> torch.Tensor:
            with adapter.dropout_draws(3, step):
                return net(X)

        state = torch.get_rng_state()
        first = at(1)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(5)
        assert torch.equal(at(1), first)
        assert not torch.equal(at(2), first)


def test_locon_adds_the_convolutions_of_the_blocks():
    plans = planned(make_net(), config("locon", targets="attention"))
    assert [name for name in plans if "conv" in name] == [
        "blocks.0.conv",
        "blocks.0.conv_out",
        "blocks.1.conv",
        "blocks.1.conv_out",
    ]
    assert "blocks.0.ff.0" not in plans


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "pissa"}, "kind is 'pissa'; choose one of lora"),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"init": "zeros"}, "init is 'zeros'"),
        ({"kind": "oft", "dropout": 0.1}, "dropout does not exist for kind oft"),
        ({"kind": "oft", "alpha": 4.0}, "alpha does not exist for kind oft"),
        ({"targets": "everything"}, "targets is 'everything'"),
        ({"targets": "regex:("}, "is not a regular expression"),
        ({"rank_by_block": "blocks"}, "'blocks' is no rule"),
        ({"rank_by_block": "blocks=many"}, "'many' in 'blocks=many' is not a number"),
        ({"rank_by_block": "(=4"}, r"rank_by_block: '\(' is not a regular expression"),
        ({"rank_by_block": "a=0"}, "rank_by_block has the rank 0"),
        ({"rank_by_block": "a=2.5"}, "rank_by_block has the rank 2.5"),
        ({"rank_by_block": "a=nan"}, "not a finite number"),
        ({"lr_by_block": "a=-1"}, "lr_by_block has the factor -1"),
        ({"lr_by_block": "a=inf"}, "not a finite number"),
        ({"file_names": "kohya"}, "file_names is 'kohya'"),
        ({"start_alpha": -1.0}, "start_alpha is -1"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(**values)


def test_targets_that_match_nothing_are_refused_before_the_network_is_touched():
    net = make_net()
    before = dict(net.named_modules())
    with (
        pytest.raises(ConfigError, match=r"selects nothing in Net \(\d+ linear layers, 4 convolutions\)"),
        injected(net, AdapterConfig(targets="regex:nowhere"), seed=0),
    ):
        pass
    assert all(module is before[name] for name, module in net.named_modules())


class Text(nn.Module):
    """A block whose second attention looks at the text."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Module()])
        self.blocks[0].attn1 = nn.ModuleDict({"to_k": nn.Linear(6, 6, bias=False)})
        self.blocks[0].attn2 = nn.ModuleDict({"to_k": nn.Linear(4, 6, bias=False)})


def test_a_full_change_adds_its_whole_matrix():
    net = make_net()
    with injected(net, config("full", targets="regex:to_q"), seed=0) as adapter:
        shaken(adapter)
        name, layer = next(iter(adapter.layers.items()))
        base = layer.base_layer
        expected = nn.functional.linear(X, base.weight + layer.diff, base.bias)
        torch.testing.assert_close(layer(X), expected)
        assert set(adapter.state_dict()) == {f"{n}.diff" for n in adapter.layers}
        assert layer.diff.shape == base.weight.shape


def test_a_held_first_token_gives_no_gradient_and_the_same_output():
    net = Text().requires_grad_(False)
    tokens = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))
    gradients = []
    for hold in (False, True):
        custom = AdapterConfig(kind="full", targets="kv", hold_first_token=hold)
        with injected(net, custom, seed=0) as adapter:
            ((name, layer),) = adapter.layers.items()
            assert name == "blocks.0.attn2.to_k"
            y = layer(tokens)
            assert torch.equal(y, layer.base_layer(tokens))
            y.square().sum().backward()
            gradients.append(layer.diff.grad.clone())
    with injected(net, AdapterConfig(kind="full", targets="kv"), seed=0) as adapter:
        (layer,) = adapter.layers.values()
        layer(tokens[:, 1:]).square().sum().backward()
        torch.testing.assert_close(gradients[1], layer.diff.grad)
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "lora", "targets": "kv"}, "this is kind lora on 1 layers, 1 of them such"),
        ({"kind": "full", "targets": "regex:attn1"}, "this is kind full on 1 layers, 0 of them such"),
    ],
)
def test_a_first_token_cannot_be_held_where_nothing_reads_the_text(values, message):
    with pytest.raises(ConfigError, match=message):
        planned(Text(), AdapterConfig(**values, hold_first_token=True))


@pytest.mark.parametrize("targets", ["kv", "cross-attention"])
def test_a_model_without_cross_attention_is_refused_with_what_it_has(targets):
    net = nn.Module()
    net.double_blocks = nn.ModuleList([nn.Module()])
    net.double_blocks[0].img_attn = nn.ModuleDict({"qkv": nn.Linear(4, 12)})
    with pytest.raises(ConfigError, match="one attention and has no cross-attention"):
        planned(net, AdapterConfig(kind="full", targets=targets))
