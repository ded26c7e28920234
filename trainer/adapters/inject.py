"""Put adapters into a network, and take them out again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..block_names import Blocks, block_counts, listed
from ..config import AdapterConfig
from ..devices import random_kept
from ..errors import ConfigError, LoraFileError, ModelError
from ..rng import stream
from ..rules import selections
from .kinds import KINDS, LayerPlan
from .layers import (
    Untouched,
    adapter_parameters,
    init_adapter,
    stand_in,
    under_autocast,
)
from .low_rank import ADAPTER, LowRank
from .own import Own, largest_block, output_size
from .start import StartingLora
from .targets import is_key_or_value, target_layers

Plans = Mapping[str, LayerPlan]


@dataclass
class Adapter:
    """The trainable weights inside a network, by the name of the layer that they adapt."""

    config: AdapterConfig
    layers: dict[str, nn.Module] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    """On the learning rate, of each layer."""

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained; what `lr_by_block` freezes is left out."""
        return [p for layer in self.layers.values() for _, p in adapter_parameters(layer) if p.requires_grad]

    def to(self, device: torch.device | None) -> None:
        """All its weights to a device; None leaves them."""
        for layer in self.layers.values():
            for _, p in adapter_parameters(layer):
                p.data = p.data.to(device)

    def parameter_groups(self, base_lr: float, lora_plus_ratio: float = 1.0) -> list[dict[str, Any]]:
        """Optimizer groups that partition `parameters()`: one for each learning rate.

        lora_plus_ratio: LoRA+ trains B with this many times the learning rate of A.
        """
        if lora_plus_ratio != 1 and not KINDS[self.config.kind].has_b:
            raise ConfigError(
                f"lora_plus_ratio is {lora_plus_ratio} but kind is {self.config.kind}, which has no B;"
                f" set the ratio to 1 or choose one of {', '.join(k for k in KINDS if KINDS[k].has_b)}"
            )
        groups: dict[float, list[nn.Parameter]] = {}
        for name, layer in self.layers.items():
            factor = self.factors.get(name, 1.0)
            for key, p in adapter_parameters(layer):
                if p.requires_grad:
                    rate = factor * (lora_plus_ratio if key == "lora_B" else 1.0)
                    groups.setdefault(rate, []).append(p)
        return [{"params": params, "lr": base_lr * rate} for rate, params in groups.items()]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block the network is the untouched one. Use it under no_grad."""
        self._enable(False)
        try:
            yield
        finally:
            self._enable(True)

    def _enable(self, on: bool) -> None:
        for layer in self.layers.values():
            if isinstance(layer, Own):
                layer.enabled = on
            else:  # peft's own switch would also set requires_grad
                layer._disable_adapters = not on  # type: ignore[assignment]

    @contextmanager
    def dropout_draws(self, seed: int, step: int, process: int = 0) -> Iterator[None]:
        """Within the block dropout draws from these alone, so that a resumed run drops the same.

        process: each has samples of its own.
        """
        if not self.config.dropout:
            yield
            return
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        with random_kept(device):
            purpose = f"dropout in process {process}" if process else "dropout"
            torch.manual_seed(stream(seed, purpose, step).initial_seed())
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the block nothing is dropped."""
        training = [m for layer in self.layers.values() for m in layer.modules() if m.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def state_dict(self) -> dict[str, Tensor]:
        """`<layer>.<tensor>` → fp32 copy on the CPU, for example `blocks.0.attn.to_q.lora_A`."""
        return {
            f"{name}.{key}": p.detach().to("cpu", torch.float32, copy=True)
            for name, layer in self.layers.items()
            for key, p in adapter_parameters(layer)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`: every tensor must be there, and nothing else."""
        own = {f"{n}.{k}": p for n, layer in self.layers.items() for k, p in adapter_parameters(layer)}
        odd = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
        if odd:
            raise LoraFileError(
                f"the saved state does not belong to this adapter ({len(odd)} tensors differ, for example"
                f" {odd[0]}); go on with the settings and the model of the first run, or start a new one"
            )
        with torch.no_grad():
            for key, p in own.items():
                p.copy_(state[key])


@contextmanager
def injected(
    net: nn.Module,
    config: AdapterConfig,
    *,
    seed: int,
    compute_dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    start: StartingLora | None = None,
    purpose: str = "init",
) -> Iterator[Adapter]:
    """Adapters inside `net` for the length of the block; afterwards its modules are the original objects.

    Adapter weights are fp32. Those of LoRA compute in the dtype of their base layer's output. With
    `compute_dtype` (the half precision of the network) the others compute under autocast, and only they: the
    network itself runs as it always does.
    device: of the adapters; None is that of each layer, which may be waiting in host memory.
    start: an existing LoRA to go on from; it decides the layers, the kind, the ranks and the alphas.
    purpose: of the draws, one for each network of a run.
    """
    plans = planned(net, config, start)
    config = start.adapted(config) if start else config
    originals = {name: net.get_submodule(name) for name in plans}
    had_config = hasattr(net, "peft_config")
    adapter = Adapter(config, factors={name: plan.factor for name, plan in plans.items()})
    try:
        own = KINDS[config.kind].own
        if own is None:
            _inject_by_peft(net, config, originals, plans)
        else:
            for name, module in originals.items():
                _replace(net, name, own(module, plans[name]))
        for name in plans:
            layer = net.get_submodule(name)
            if not isinstance(layer, BaseTunerLayer | Own):
                raise ModelError(
                    f"layer {name} ({type(originals[name]).__name__}) cannot carry an adapter of kind"
                    f" {config.kind}; choose kind lora, or other targets"
                )
            draws = stream(seed, f"{purpose} {name}")
            _prepare(layer, config, plans[name], draws, compute_dtype)
            _freeze(layer, plans[name].factor == 0)
            adapter.layers[name] = layer
        if not adapter.parameters():
            raise ConfigError("lr_by_block freezes every layer; leave one with a factor above 0")
        if start:
            start.fill(adapter.layers)
        adapter.to(device)
        yield adapter
    finally:
        for name, module in originals.items():
            _replace(net, name, module)
        if not had_config and hasattr(net, "peft_config"):
            del net.peft_config


def planned(net: nn.Module, config: AdapterConfig, start: StartingLora | None = None) -> dict[str, LayerPlan]:
    """What each layer that gets an adapter has. Changes nothing; raises what `injected` would."""
    every = [name for name, _ in net.named_modules()]
    rates, ranks = config.lr_rules.settled(every), config.rank_rules.settled(every)
    if start:
        start.check_layers(net)
        plans = {
            name: LayerPlan(rank, alpha, rates.value(name, 1.0))
            for name, (rank, alpha) in start.plans().items()
        }
    else:
        plans = {}
        wanted = target_layers(net, config.targets, convolutions=config.kind == "locon")
        for name in _in_blocks(wanted, config, every):
            rank = int(ranks.value(name, config.rank))
            plans[name] = LayerPlan(rank, config.alpha or float(rank), rates.value(name, 1.0))
    kind = start.kind if start else config.kind
    if config.hold_first_token:
        held = {name for name in plans if is_key_or_value(name)}
        if kind != "full" or not held:
            raise ConfigError(
                f"hold_first_token is for the keys and values of cross-attention with kind full, and this is"
                f" kind {kind} on {len(plans)} layers, {len(held)} of them such; switch it off, or set kind"
                " to full and targets to kv"
            )
        plans = {name: replace(plan, hold_first_token=name in held) for name, plan in plans.items()}
    if config.file_names == "diffusers" and not KINDS[kind].has_b:
        raise ConfigError(
            f"diffusers cannot read kind {kind}; set file_names to comfyui, or choose"
            f" one of {', '.join(k for k in KINDS if KINDS[k].has_b)}"
        )
    if config.file_names == "lycoris" and kind == "oft":
        for name, plan in plans.items():
            _check_lycoris_block(name, output_size(net.get_submodule(name)), plan.rank)
    return plans


def _in_blocks(layers: Iterable[str], config: AdapterConfig, every: list[str]) -> list[str]:
    """Those that the lines of `blocks` name, or all. Raises ConfigError for a line that names none."""
    layers, counts = list(layers), block_counts(every)
    named = [s.settled(counts) if isinstance(s, Blocks) else s for s in selections(config.blocks, "blocks")]
    for one in named:
        if not any(map(one.found_in, layers)):
            raise ConfigError(
                f"blocks: {one.text!r} is found in none of the {len(layers)} layers of targets"
                f" {config.targets!r}; this model has {listed(counts)}"
            )
    return [name for name in layers if not named or any(one.found_in(name) for one in named)]


def _check_lycoris_block(name: str, outputs: int, rank: int) -> None:
    size = largest_block(outputs, rank)
    if size**2 > outputs:
        raise ConfigError(
            f"LyCORIS does not read the OFT of layer {name}, which has blocks of {size} rows for {outputs}"
            f" outputs; set the rank to {int(outputs**0.5)} or less, or file_names to comfyui"
        )


def check_start(net: nn.Module, start: StartingLora) -> None:
    """Whether the layers that peft makes have the shapes of the file's tensors. Raises LoraFileError."""
    plans = planned(net, AdapterConfig(), start)
    config = start.adapted(AdapterConfig())
    if not KINDS[config.kind].peft:
        return
    likeness = nn.Module()
    for name in plans:
        at = likeness
        *parents, leaf = name.split(".")
        for parent in parents:
            if parent not in at._modules:
                at.add_module(parent, nn.Module())
            at = at.get_submodule(parent)
        at.add_module(leaf, stand_in(net.get_submodule(name)))
    _inject_by_peft(likeness, config, {name: likeness.get_submodule(name) for name in plans}, plans)
    start.check_fit({name: likeness.get_submodule(name) for name in plans})


def _inject_by_peft(
    net: nn.Module, config: AdapterConfig, originals: Mapping[str, nn.Module], plans: Plans
) -> None:
    """peft sees plain fp32 layers without storage, and so neither quantised classes nor fp8 weights."""
    with _kept_rng():
        for name, module in originals.items():
            _replace(net, name, stand_in(module))
        try:
            inject_adapter_in_model(_peft_config(config, plans), net, ADAPTER)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"this model has a layer that cannot carry an adapter of kind {config.kind} ({error});"
                " choose kind lora, or targets without it"
            ) from error
        for name, module in originals.items():
            layer: Any = net.get_submodule(name)
            if hasattr(layer, "base_layer"):
                layer.to_empty(device=module.weight.device)
                layer.base_layer = module


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)


@contextmanager
def _kept_rng() -> Iterator[None]:
    # peft draws its own initial values, which init_adapter replaces.
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _peft_config(config: AdapterConfig, plans: Plans) -> Any:
    # peft puts "(.*\.)?" before a pattern's key, so ^ is what makes a full name of it.
    ranks: dict[float, list[str]] = {}
    alphas: dict[float, list[str]] = {}
    for name, plan in plans.items():
        ranks.setdefault(plan.rank, []).append(f"^{re.escape(name)}")
        alphas.setdefault(plan.alpha, []).append(f"^{re.escape(name)}")
    return KINDS[config.kind].peft_config(
        config,
        r=config.rank,
        target_modules="|".join(re.escape(name) for name in plans),
        rank_pattern={"|".join(names): int(rank) for rank, names in ranks.items()},
        alpha_pattern={"|".join(names): alpha for alpha, names in alphas.items()},
    )


def _prepare(
    layer: Any,
    config: AdapterConfig,
    plan: LayerPlan,
    generator: torch.Generator,
    compute_dtype: torch.dtype | None,
) -> None:
    for _, p in adapter_parameters(layer):
        p.data = p.data.float()
        p.requires_grad_(True)
    init_adapter(layer, KINDS[config.kind], config.init, generator)
    if isinstance(layer, Own):
        return
    assert layer.r[ADAPTER] == plan.rank
    if isinstance(layer, LowRank):
        return
    # The cast would keep an fp32 copy of each layer's input until the backward pass.
    layer.cast_input_dtype_enabled = False
    if compute_dtype is not None:
        base = layer.get_base_layer()
        layer.base_layer = Untouched(base)
        layer.__class__ = under_autocast(type(layer), compute_dtype)


def _freeze(layer: nn.Module, frozen: bool) -> None:
    if frozen:
        for _, p in adapter_parameters(layer):
            p.requires_grad_(False)
