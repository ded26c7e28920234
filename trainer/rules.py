"""Which layers a setting means: the choices of targets, regular expressions, and rules made of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import regex

from .block_names import REST, Blocks, block_counts, listed
from .errors import ConfigError

TARGETS = (
    "attention",
    "cross-attention",
    "kv",
    "attention+feed-forward",
    "all linear",
    "all linear + conv",
)
REGEX = "regex:"

MAX_LENGTH = 1000
MAX_REPEATS = 10_000
MAX_SECONDS = 0.5

T = TypeVar("T")

_COUNTS = regex.compile(r"\{(\d*),?(\d*)\}")


class Expression:
    """A regular expression that a shared workflow may have brought, searched in the names of layers.

    One that backtracks without end would hold the whole server: `regex` gives up after `seconds`, added up
    over all searches, and lets other threads run meanwhile. Python's `re` can do neither. Counts of
    repetitions are multiplied out when an expression is compiled, and so are bounded before.
    """

    def __init__(
        self, text: str, field: str, example: str = r"attn2\.to_[kv]$", seconds: float = MAX_SECONDS
    ) -> None:
        """field: of the settings, for messages; example: of a right expression; seconds: for all searches.

        Raises ConfigError.
        """
        self.text, self.field, self._seconds = text, field, seconds
        if len(text) > MAX_LENGTH:
            raise ConfigError(
                f"{field}: an expression of {len(text)} characters; at most {MAX_LENGTH} are possible, so"
                " write it shorter"
            )
        if _repeats(text) > MAX_REPEATS:
            raise ConfigError(
                f"{field}: the counts in '{text}' multiply to more than {MAX_REPEATS}; write * or + instead"
            )
        try:
            self._pattern = regex.compile(text)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ConfigError(
                f"{field}: '{text}' is not a regular expression ({error}); correct it, for example {example}"
            ) from error
        self._left = seconds

    def found_in(self, name: str) -> bool:
        return self._in_time(self._pattern.search, name) is not None

    def replaced_in(self, text: str, by: str) -> str:
        r"""`text` with each match replaced by `by`, in which \1 or \g<name> are groups of the match."""
        try:
            return self._in_time(self._pattern.sub, by, text)
        except (regex.error, IndexError) as error:
            raise ConfigError(
                f"{self.field}: '{by}' cannot replace '{self.text}' ({error}); groups are \\1 to \\9 for what"
                " is in brackets, and a backslash itself is \\\\"
            ) from error

    def _in_time(self, search: Callable[..., T], *texts: str) -> T:
        started = time.perf_counter()
        try:
            return search(*texts, timeout=max(self._left, 1e-3), concurrent=True)
        except (TimeoutError, MemoryError) as error:
            raise ConfigError(
                f"{self.field}: the expression '{self.text}' takes more than {self._seconds:g} s; it"
                " backtracks, so write it without nested repetitions such as (a+)+"
            ) from error
        finally:
            self._left -= time.perf_counter() - started


def _repeats(text: str) -> int:
    """What all counts like {3} or {2,5} multiply to."""
    numbers = [int(n) for counts in _COUNTS.findall(text) for n in counts if 0 < len(n) < 9]
    too_long = any(len(n) >= 9 for counts in _COUNTS.findall(text) for n in counts)
    return MAX_REPEATS + 1 if too_long else math.prod(max(n, 1) for n in numbers)


def check_targets(targets: str) -> None:
    """Raise ConfigError when `targets` is no choice and no regular expression."""
    if targets.startswith(REGEX):
        Expression(targets.removeprefix(REGEX), "targets")
    elif targets not in TARGETS:
        choices = ", ".join(repr(c) for c in TARGETS)
        raise ConfigError(f"targets is {targets!r}; choose one of {choices}, or regex:<expression>")


Selection = Expression | Blocks

SHAPES: dict[str, Callable[[float], float]] = {
    "sine": lambda x: math.sin(math.pi / 2 * x),
    "cosine": lambda x: math.sin(math.pi / 2 * (1 - x)),
    "linear": lambda x: x,
    "reverse_linear": lambda x: 1 - x,
    "zeros": lambda _: 0.0,
}
"""Values over the blocks by name, x from 0 at the first to 1 at the last, as sd-scripts defines them."""
THRESHOLD = "block_lr_zero_threshold"


@dataclass(frozen=True)
class Rule:
    selection: Selection
    values: tuple[float, ...]
    """One for all, or one for each block."""
    shape: str = ""
    """Of SHAPES, to which the one value is added."""
    text: str = ""

    def settled(self, counts: Mapping[str, int]) -> Rule:
        """With a value for each block of a network. Raises ConfigError where they do not match."""
        if not isinstance(self.selection, Blocks):
            return self
        blocks = self.selection.settled(counts)
        count, values = counts.get(blocks.module, 1), self.values
        if self.shape:
            values = tuple(SHAPES[self.shape](i / max(count - 1, 1)) + values[0] for i in range(count))
        if len(values) not in (1, count):
            raise ConfigError(
                f"{blocks.field}: {self.text[:80]!r} has {len(values)} numbers for {count} blocks; write one"
                f" for each or one for all, this model has {listed(counts)}"
            )
        return Rule(blocks, values)

    def value(self, layer: str) -> float | None:
        if not self.selection.found_in(layer):
            return None
        number = self.selection.number_in(layer) if isinstance(self.selection, Blocks) else None
        return self.values[(number or 0) if len(self.values) > 1 else 0]


@dataclass(frozen=True)
class Rules:
    """Lines of `layers=number`; the first one whose layers are found decides.

    Layers are a regular expression, or blocks by name: `down=0.5`, `up 3-5=0`, `double_blocks 0,7=2`,
    `rest=0`. Blocks may have a number each, or one of SHAPES, in the spelling of sd-scripts too:
    `up_lr_weight=0,0,1,…`, `down_lr_weight=sine+0.25`; in a list nothing is 0. Values of blocks by name up to
    `block_lr_zero_threshold=` are 0.
    """

    rules: tuple[Rule, ...] = ()
    threshold: float | None = None

    @classmethod
    def parse(cls, text: str, field: str) -> Rules:
        """Empty lines and lines that start with # are left out; anything else must be a rule."""
        rules, threshold = [], None
        for line in rule_lines(text):
            rule = _rule(line, field)
            if field == "lr_by_block" and rule.selection.text == THRESHOLD:
                threshold = rule.values[0]
            else:
                rules.append(rule)
        return cls(tuple(rules), threshold)

    def settled(self, layers: Iterable[str]) -> Rules:
        """In a network with these layers. Raises ConfigError for blocks that it does not have."""
        if not any(isinstance(rule.selection, Blocks) for rule in self.rules):
            return self
        counts = block_counts(layers)
        return Rules(tuple(rule.settled(counts) for rule in self.rules), self.threshold)

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(value for rule in self.rules for value in rule.values)

    def value(self, layer: str, default: float) -> float:
        for rule in self.rules:
            if (value := rule.value(layer)) is not None:
                small = self.threshold is not None and value <= self.threshold
                return 0.0 if small and isinstance(rule.selection, Blocks) else value
        return default


def rule_lines(text: str) -> list[str]:
    """Without empty ones, remarks, and the quotes that a command line needs."""
    lines = (line.strip().strip("\"'").strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def expressions_of(text: str) -> str:
    """The lines that are no blocks by name: those that hold in any network."""
    return "\n".join(line for line in rule_lines(text) if isinstance(_rule(line, "").selection, Expression))


def selections(text: str, field: str) -> list[Selection]:
    """Lines of blocks by name, or expressions. Raises ConfigError."""
    if REST in rule_lines(text):
        raise ConfigError(
            f"{field} has the line 'rest', which means what no line names; leave {field} empty for all"
        )
    return [Blocks.parse(line, field) or Expression(line, field) for line in rule_lines(text)]


def _rule(line: str, field: str) -> Rule:
    layers, equals, number = (part.strip() for part in line.rpartition("="))
    example = r"write regex=number, for example double_blocks\.0\.=8"
    if not equals or not layers:
        raise ConfigError(f"{field}: {line[:80]!r} is no rule; {example}")
    shape, _, base = number.partition("+")
    if shape.strip() in SHAPES:
        shape, numbers = shape.strip(), [base or "0"]
    else:
        shape, numbers = "", [n.strip() or "0" for n in number.split(",")] if "," in number else [number]
    values = tuple(_number(n, line, field, example) for n in numbers)
    blocks = Blocks.parse(layers, field, sure=bool(shape) or len(values) > 1)
    if blocks is None and (shape or len(values) > 1):
        raise ConfigError(f"{field}: {line[:80]!r} has a number for each block, but names none; {example}")
    return Rule(blocks or Expression(layers, field), values, shape, line)


def _number(number: str, line: str, field: str, example: str) -> float:
    try:
        value = float(number)
    except ValueError as error:
        raise ConfigError(
            f"{field}: {number.strip()!r} in {line[:80]!r} is not a number; {example}"
        ) from error
    if not math.isfinite(value):
        raise ConfigError(f"{field}: {number.strip()!r} in {line[:80]!r} is not a finite number; {example}")
    return value
