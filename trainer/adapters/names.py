"""How the tensors of a LoRA file are named.

A tensor's name is a prefix, which says the layer, and a suffix, which says the role of the tensor. Each
trainer has its own spelling of both. `split_key` knows the suffixes; the prefixes depend on the model and
come as `aliases`, which the host builds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import LoraFileError

# What follows the layer's name → our word for it. Longer spellings come first.
_SUFFIXES = {
    ".lora_linear_layer.down.weight": "lora_A",
    ".lora_linear_layer.up.weight": "lora_B",
    ".lora_A.default.weight": "lora_A",
    ".lora_B.default.weight": "lora_B",
    ".lora_down.weight": "lora_A",
    ".lora_up.weight": "lora_B",
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora.down.weight": "lora_A",
    ".lora.up.weight": "lora_B",
    "_lora.down.weight": "lora_A",
    "_lora.up.weight": "lora_B",
    ".lora_A": "lora_A",
    ".lora_B": "lora_B",
    ".lora_mid.weight": "lora_mid",
    ".lora_magnitude_vector.default.weight": "lora_magnitude_vector",
    ".lora_magnitude_vector.weight": "lora_magnitude_vector",
    ".lora_magnitude_vector": "lora_magnitude_vector",
    ".dora_scale": "dora_scale",
    ".alpha": "alpha",
    **{
        f".{name}": name
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    },
    **{f".lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".oft_blocks": "oft_blocks",
    ".rescale": "rescale",
    ".reshape_weight": "reshape_weight",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
    ".diff_b": "diff_b",
    ".diff": "diff",
    ".set_weight": "set_weight",
}

KOHYA = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", "lora_mid": "lora_mid.weight"}
"""Our word → kohya's ending, where that is another word."""

# Wrappers that trainers leave in front of the names of their modules.
_WRAPPERS = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "pipe.dit.",
    "pipe.unet.",
    "dit.",
    "model.",
)

_TEXT_ENCODERS = (
    "lora_te",
    "lora_prior_te",
    "text_encoder",
    "te_",
    "te1_",
    "te2_",
    "conditioner.",
    "cond_stage_model.",
)


@dataclass(frozen=True)
class Rows:
    """A layer, or the rows of it that another trainer keeps as a layer of its own (q of a fused qkv)."""

    layer: str
    start: int = 0
    length: int = 0
    """0: all rows."""


@dataclass(frozen=True)
class FileName:
    """What a layer is called in a file. With `parts`, its rows are written as layers of their own."""

    prefix: str
    parts: tuple[tuple[str, int, int], ...] = ()
    """(prefix, first row, rows). An empty `prefix` means that the layer as a whole has no name."""

    @property
    def is_diffusers(self) -> bool:
        """Names in diffusers' own style, which only diffusers and PEFT read."""
        return (self.prefix or self.parts[0][0]).startswith(("unet.", "transformer."))


def split_key(key: str) -> tuple[str, str] | None:
    """(prefix, role) of a tensor's name, or None when the ending says nothing."""
    for suffix, role in _SUFFIXES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), role
    return None


def by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Prefix → role → tensor, without names whose ending says nothing.

    Raises LoraFileError when two spellings give a layer the same role.
    """
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if (split := split_key(key)) is not None:
            prefix, role = split
            if role in layers[prefix]:
                raise LoraFileError(f"{prefix} has {role} twice in the LoRA file; choose another file")
            layers[prefix][role] = tensor
    return dict(layers)


def unplaced(tensors: Iterable[str], known: Callable[[str], bool]) -> list[str]:
    """The names whose ending says nothing, or whose prefix is not known."""
    split = {key: split_key(key) for key in tensors}
    return [key for key, parts in split.items() if parts is None or not known(parts[0])]


def candidates(prefix: str) -> Iterator[str]:
    """The prefix as it is, and without the wrappers in front of it."""
    yield prefix
    for wrapper in _WRAPPERS:
        if prefix.startswith(wrapper):
            yield from candidates(prefix.removeprefix(wrapper))


def find(prefix: str, aliases: Mapping[str, Rows]) -> Rows | None:
    return next((aliases[c] for c in candidates(prefix) if c in aliases), None)


def is_text_encoder(key: str) -> bool:
    return key.startswith(_TEXT_ENCODERS)
