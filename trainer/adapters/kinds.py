"""One row an adapter kind: how peft makes it, what its tensors are called, how files name it.

lora, locon, rslora, dora    ΔW = s B A                     (dora: and a magnitude for each output)
loha                         ΔW = s (w1_a w1_b) ∘ (w2_a w2_b)
lokr                         ΔW = s w1 ⊗ w2, or w1 ⊗ (w2_a w2_b)
oft                          W' = Rᵀ W                      (`own.OutputRotation`, not peft's)
full                         ΔW, of any rank               (`own.FullChange`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.config import PeftConfig
from torch import nn

from ..config import ADAPTER_KINDS, AdapterConfig
from .low_rank import LAYERS
from .own import FullChange, OutputRotation, Own


@dataclass(frozen=True)
class LayerPlan:
    rank: int
    alpha: float
    factor: float = 1.0
    """On the learning rate; 0 freezes the layer."""
    hold_first_token: bool = False
    """`AdapterConfig.hold_first_token`, on keys and values of cross-attention."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    name: str
    roles: frozenset[str]
    """Names of its factors, in adapters and in files (`names.split_key`)."""
    zero: tuple[str, ...] = ()
    """The factor that starts at zero: the first of these that a layer has."""
    scaled: str = ""
    """The factor that takes in a scale for which a file has no place."""
    alpha_in_file: bool = True
    """Readers agree on α/r. LyCORIS multiplies LoHa and LoKr by it twice when it merges them."""
    peft: type[PeftConfig] | None = None
    """None: no peft layer, but `own`."""
    own: Callable[[nn.Module, LayerPlan], Own] | None = None
    peft_alpha: str = "alpha"
    peft_dropout: str = "rank_dropout"
    peft_options: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[type[nn.Module], type[nn.Module]] = field(default_factory=dict)
    """Plain layer → our layer for it; peft's own for those that are not here."""
    module: str = "lycoris.kohya"
    """`ss_network_module` of a file."""
    args: Mapping[str, str] = field(default_factory=dict)
    """`ss_network_args` of a file."""

    @property
    def has_b(self) -> bool:
        """It has B and A: LoRA+ knows which learns faster, and diffusers reads it."""
        return "lora_B" in self.roles

    @property
    def has_rank(self) -> bool:
        """Its rank and alpha mean something; `full` has neither."""
        return "diff" not in self.roles

    def peft_config(self, config: AdapterConfig, **layers: Any) -> PeftConfig:
        assert self.peft is not None
        named = {self.peft_alpha: config.scale_alpha, self.peft_dropout: config.dropout}
        made = self.peft(**named, **self.peft_options, **layers)  # type: ignore[arg-type]
        if self.layers:
            made._register_custom_module(dict(self.layers))  # type: ignore[attr-defined]
        return made


def _lora(name: str, **row: Any) -> Kind:
    return Kind(
        name=name,
        roles=frozenset({"lora_A", "lora_B"}),
        zero=("lora_B",),
        scaled="lora_B",
        peft=LoraConfig,
        peft_alpha="lora_alpha",
        peft_dropout="lora_dropout",
        **row,
    )


_ROWS = (
    _lora("lora", layers=LAYERS, module="networks.lora"),
    _lora("locon", layers=LAYERS, module="networks.lora"),
    _lora("rslora", layers=LAYERS, module="networks.lora", peft_options={"use_rslora": True}),
    _lora("dora", peft_options={"use_dora": True}, args={"algo": "locon", "dora_wd": "True"}),
    Kind(
        name="loha",
        roles=frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        zero=("hada_w2_b",),
        scaled="hada_w1_a",
        alpha_in_file=False,
        peft=LoHaConfig,
        args={"algo": "loha"},
    ),
    Kind(
        name="lokr",
        roles=frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
        zero=("lokr_w1", "lokr_w1_a"),
        scaled="lokr_w1",
        alpha_in_file=False,
        peft=LoKrConfig,
        args={"algo": "lokr"},
    ),
    Kind(
        name="oft",
        roles=frozenset({"oft_blocks"}),
        own=lambda layer, plan: OutputRotation(layer, plan.rank),
        args={"algo": "diag-oft"},
    ),
    Kind(
        name="full",
        roles=frozenset({"diff"}),
        own=lambda layer, plan: FullChange(layer, hold_first_token=plan.hold_first_token),
        args={"algo": "full"},
    ),
)
KINDS = {row.name: row for row in _ROWS}

assert tuple(KINDS) == ADAPTER_KINDS, "config and rows name the same kinds"
