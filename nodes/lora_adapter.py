"""LoRAAdapter: which kind of adapter, on which layers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.config import ADAPTER_FILE_NAMES, ADAPTER_INITS, ADAPTER_KINDS, AdapterConfig
from ..trainer.errors import ConfigError
from ..trainer.host import paths
from ..trainer.rules import REGEX, TARGETS, Rules, selections
from .sockets import CATEGORY, Adapter

_D = AdapterConfig()
CUSTOM = "regex"
NEW_LORA = "[a new LoRA]"


class LoRAAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRAAdapter",
            display_name="LoRA Adapter",
            category=CATEGORY,
            description="Kind of adapter and the layers it sits on, for Train LoRA.",
            search_aliases=[
                "dora",
                "lokr",
                "loha",
                "oft",
                "locon",
                "lycoris",
                "custom diffusion",
                "rank",
                "适配器",
            ],
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=list(ADAPTER_KINDS),
                    default=_D.kind,
                    tooltip="lora: the usual. locon: LoRA on convolutions too. dora: learns more, slower."
                    " rslora: scale for high ranks. lokr, loha: LyCORIS. oft: rotates the outputs."
                    " full: the whole change of each layer, without a rank.",
                ),
                io.Combo.Input(
                    "targets",
                    options=[*TARGETS, CUSTOM],
                    default=_D.targets,
                    tooltip="Layers that get an adapter. More layers learn more, for more memory and larger"
                    " files. kv: only keys and values of cross-attention. regex: the field target_regex.",
                ),
                io.String.Input(
                    "target_regex",
                    default="",
                    advanced=True,
                    tooltip=r"With targets regex: searched in the layers' names, for example attn2\.to_[kv]$",
                ),
                io.Float.Input(
                    "dropout",
                    default=_D.dropout,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    tooltip="Share of each adapter that is left out at random against overfitting.",
                ),
                io.Combo.Input(
                    "init",
                    options=list(ADAPTER_INITS),
                    default=_D.init,
                    advanced=True,
                    tooltip="How the first factor starts. The other is zero: a new LoRA changes nothing.",
                ),
                io.String.Input(
                    "rank_by_block",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="One rule a line, regex=rank, or blocks by name: up 3-5=rank. The first that is"
                    " found for a layer counts.",
                ),
                io.String.Input(
                    "lr_by_block",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="One rule a line, regex=factor or up 3-5=factor on the learning rate; rest=0"
                    " freezes what no line names. down=0,0,1,… as sd-scripts' down_lr_weight.",
                ),
                io.Combo.Input(
                    "start_from",
                    options=[NEW_LORA, *paths.lora_names()],
                    default=NEW_LORA,
                    advanced=True,
                    tooltip="Trains an existing LoRA file further. Its kind, layers, ranks and alphas count.",
                ),
                io.Float.Input(
                    "start_alpha",
                    default=_D.start_alpha,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    advanced=True,
                    tooltip="Alpha of a start_from file that carries none. 0 means equal to its rank.",
                ),
                io.Combo.Input(
                    "file_names",
                    options=list(ADAPTER_FILE_NAMES),
                    default=_D.file_names,
                    advanced=True,
                    tooltip="Spelling of the file. comfyui: for Load LoRA and most other tools. diffusers:"
                    " only for diffusers. lycoris: for LyCORIS and what follows it; DoRA differs.",
                ),
                io.String.Input(
                    "blocks",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="Only layers in these blocks get an adapter, one line each: down, mid, up 3-5,"
                    " double_blocks 0,7, or an expression. Empty: in all blocks.",
                ),
                io.Boolean.Input(
                    "hold_first_token",
                    default=_D.hold_first_token,
                    optional=True,
                    advanced=True,
                    tooltip="Custom Diffusion, with kind full and targets kv: keys and values learn nothing"
                    " from the start token, which every prompt has.",
                ),
            ],
            outputs=[Adapter.Output(display_name="adapter", tooltip="For the adapter input of Train LoRA.")],
        )

    @classmethod
    def validate_inputs(
        cls, rank_by_block: str | None = None, lr_by_block: str | None = None, blocks: str | None = None
    ) -> bool | str:
        try:
            selections(blocks or "", "blocks")
            Rules.parse(rank_by_block or "", "rank_by_block")  # None: it comes through a link
            Rules.parse(lr_by_block or "", "lr_by_block")
        except ConfigError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, targets: str, target_regex: str, start_from: str, **values: Any) -> io.NodeOutput:
        if targets == CUSTOM:
            if not target_regex.strip():
                raise ConfigError(r"target_regex is empty; write an expression, for example attn2\.to_[kv]$")
            targets = REGEX + target_regex.strip()
        return io.NodeOutput(
            AdapterConfig(targets=targets, start_from="" if start_from == NEW_LORA else start_from, **values)
        )
