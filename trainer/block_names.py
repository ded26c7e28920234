"""Blocks of a network by the names that people use, and by their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import ConfigError

NAMES = (
    ("down", "input_blocks"),  # UNets: SD 1, SD 2, SDXL, as sd-scripts numbers them
    ("mid", "middle_block"),
    ("up", "output_blocks"),
    ("double", "double_blocks"),  # Flux, Chroma, HunyuanVideo
    ("single", "single_blocks"),
    ("double", "double_stream_blocks"),  # HiDream
    ("single", "single_stream_blocks"),
    ("double", "double_layers"),  # AuraFlow
    ("single", "single_layers"),
)
"""(name, the numbered modules that it means). Any numbered modules also go by their own name."""
REST = "rest"
"""Every layer that no line before names."""
SD_SCRIPTS = "_lr_weight"
"""Its network_args have this behind the name: down_lr_weight."""

MAX_LENGTH = 1000
"""Characters of a line."""

_BLOCK = re.compile(r"(.+?)\.(?:block)?(\d+)\.")
_NUMBERED = re.compile(r"(block)?\d+")
# UNet: the first convolution is the first of the numbered blocks, but not one of them.
_FIRST_CONVOLUTION = "input_blocks.0.0"
_LINE = re.compile(r"([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)(?:\s+([\d\s,-]+))?")


def in_block(layer: str) -> bool:
    """Whether a layer is part of a numbered block, and so not an embedding, the first or the last layer."""
    parents = layer.split(".")[:-1]
    if layer == _FIRST_CONVOLUTION or any("embedder" in p for p in parents):
        return False
    return any(_NUMBERED.fullmatch(p) for p in parents)


def block_of(layer: str) -> tuple[str, int] | None:
    """(numbered modules, number): `input_blocks.4.1.proj_in` is in ("input_blocks", 4)."""
    match = _BLOCK.match(layer) if in_block(layer) else None
    return (match[1], int(match[2])) if match else None


def block_counts(layers: Iterable[str]) -> dict[str, int]:
    """Numbered modules → how many there are, of the names of a network's layers."""
    found: dict[str, int] = {}
    for module, number in filter(None, map(block_of, layers)):
        found[module] = max(found.get(module, 0), number + 1)
    return found


def listed(counts: Mapping[str, int]) -> str:
    """The blocks of a network for a message: `down 0-11, mid 0-2, up 0-11`."""
    own = {module: name for name, module in NAMES}
    return ", ".join(f"{own.get(m, m)} 0-{n - 1}" for m, n in counts.items()) or "none with numbers"


@dataclass(frozen=True)
class Blocks:
    """What a line such as `up 3-5` means; in any network until it is settled in one."""

    name: str
    numbers: frozenset[int] | None
    """None: all."""
    text: str
    field: str
    """Of the settings, for messages."""
    module: str = ""
    """Of the network that it was settled in."""

    @classmethod
    def parse(cls, text: str, field: str, *, sure: bool = False) -> Blocks | None:
        """None for what is no name of blocks. sure: that it is one is known from elsewhere.

        A name with numbers is one, and so are those of NAMES and REST; what else could be an expression.
        Raises ConfigError for numbers that are none.
        """
        match = _LINE.fullmatch(text) if len(text) <= MAX_LENGTH else None
        if match is None:
            return None
        name, numbers = match[1].removesuffix(SD_SCRIPTS), match[2]
        if not (sure or numbers or name == REST or any(name == known for known, _ in NAMES)):
            return None
        return cls(name, _numbers(numbers, text, field) if numbers else None, text, field)

    def settled(self, counts: Mapping[str, int]) -> Blocks:
        """As blocks of this network. Raises ConfigError where it has none of the name or the numbers."""
        if self.name == REST:
            return self
        candidates = (*(m for name, m in NAMES if name == self.name), self.name)
        module = next((m for m in candidates if m in counts), None)
        if module is None:
            raise ConfigError(
                f"{self.field}: this model has no blocks named {self.name!r}; it has {listed(counts)}"
            )
        if self.numbers and max(self.numbers) >= counts[module]:
            raise ConfigError(
                f"{self.field}: {self.text!r} counts further than this model, which has {listed(counts)}"
            )
        return Blocks(self.name, self.numbers, self.text, self.field, module)

    def found_in(self, layer: str) -> bool:
        """Only once it is settled."""
        return self.name == REST or self.number_in(layer) is not None

    def number_in(self, layer: str) -> int | None:
        """The number of the layer's block, where it is one of these."""
        at = block_of(layer)
        if at is None or at[0] != self.module or (self.numbers is not None and at[1] not in self.numbers):
            return None
        return at[1]


def _numbers(text: str, line: str, field: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:\s*-\s*(\d{1,4}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ConfigError(f"{field}: {line!r} has numbers that are none; write them as 0-5,10")
        found |= set(range(first, last + 1))
    return frozenset(found)
