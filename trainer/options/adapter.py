"""LoRA Adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..rules import Rules, check_targets, selections
from .checks import check_range, demand

ADAPTER_KINDS = ("lora", "locon", "rslora", "dora", "loha", "lokr", "oft", "full")
ADAPTER_INITS = ("gaussian", "kaiming")
ADAPTER_FILE_NAMES = ("comfyui", "diffusers", "lycoris")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    kind: str = "lora"
    """One of ADAPTER_KINDS; docs/adapters.md has the formulas."""
    rank: int = 16
    """Inner dimension r of the update ΔW = (α/r)·B·A; for oft the largest size of a block; none for full."""
    alpha: float = 0.0
    """Scale numerator α; 0 means equal to the rank, so that ΔW = B·A."""
    dropout: float = 0.0
    """Share of what each adapter sees (lora kinds) or changes (loha, lokr) that is dropped in a step."""
    init: str = "gaussian"
    """Distribution of the factors that do not start at zero: gaussian or kaiming (uniform)."""
    targets: str = "attention"
    """Which layers get an adapter; see `trainer.adapters.targets`."""
    rank_by_block: str = ""
    """Lines `regex=rank`: the first one found in a layer's name decides its rank."""
    lr_by_block: str = ""
    """Lines `regex=factor` on the learning rate of the layers found; 0 freezes them."""
    start_from: str = ""
    """LoRA file, as ComfyUI lists it, that training goes on from; its kind, ranks and alphas count then."""
    start_alpha: float = 0.0
    """α of a starting file that carries none (DiffSynth's); 0 means equal to its rank."""
    file_names: str = "comfyui"
    """Names and spelling of the saved file: comfyui (kohya's names, or ComfyUI's and diffusers' common ones),
    diffusers, or lycoris (kohya's names for every family, DoRA and LoKr as LyCORIS reads them)."""
    blocks: str = ""
    """Lines of blocks by name (`up 3-5`) or expressions: only layers in these get an adapter; "" is all."""
    hold_first_token: bool = False
    """Keys and values of cross-attention get no gradient from the text's first token, as in the code of
    Custom Diffusion (Kumari et al. 2023) and in diffusers' script. For kind full."""

    def __post_init__(self) -> None:
        demand(self.kind in ADAPTER_KINDS, f"kind is {self.kind!r}; choose one of {', '.join(ADAPTER_KINDS)}")
        check_range(self, 1, 1024, "rank", hint="4 to 32 is usual")
        check_range(self, 0, math.inf, "alpha", "start_alpha", hint="0: equal to the rank")
        demand(0 <= self.dropout < 1, f"dropout is {self.dropout}; choose 0 (off) to 0.9 (0.1 is usual)")
        demand(self.init in ADAPTER_INITS, f"init is {self.init!r}; choose gaussian or kaiming")
        demand(
            self.file_names in ADAPTER_FILE_NAMES,
            f"file_names is {self.file_names!r}; choose one of {', '.join(ADAPTER_FILE_NAMES)}",
        )
        if self.kind in ("oft", "full"):
            demand(self.dropout == 0, f"dropout does not exist for kind {self.kind}; set dropout to 0")
            demand(self.alpha == 0, f"alpha does not exist for kind {self.kind}; set alpha to 0")
        check_targets(self.targets)
        selections(self.blocks, "blocks")
        for rule in self.rank_rules.rules:
            demand(not rule.shape, f"rank_by_block: {rule.text!r} is for learning rates; write whole numbers")
        for rank in self.rank_rules.values:
            demand(
                rank == int(rank) and 1 <= rank <= 1024,
                f"rank_by_block has the rank {rank:g}; choose whole numbers from 1 to 1024",
            )
        for factor in self.lr_rules.values:
            demand(factor >= 0, f"lr_by_block has the factor {factor:g}; choose 0 (frozen) or more")

    @property
    def rank_rules(self) -> Rules:
        return Rules.parse(self.rank_by_block, "rank_by_block")

    @property
    def lr_rules(self) -> Rules:
        return Rules.parse(self.lr_by_block, "lr_by_block")

    @property
    def scale_alpha(self) -> float:
        return self.alpha or float(self.rank)
