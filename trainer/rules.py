"""Which layers a setting means: the choices of targets, regular expressions, and rules made of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import regex

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


@dataclass(frozen=True)
class Rules:
    """Lines of `regex=number`; the first one whose expression is found in a layer's name decides."""

    rules: tuple[tuple[Expression, float], ...] = ()

    @classmethod
    def parse(cls, text: str, field: str) -> Rules:
        """Empty lines and lines that start with # are left out; anything else must be a rule."""
        lines = [line.strip() for line in text.splitlines()]
        return cls(tuple(_rule(line, field) for line in lines if line and not line.startswith("#")))

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(value for _, value in self.rules)

    def value(self, layer: str, default: float) -> float:
        return next((value for expression, value in self.rules if expression.found_in(layer)), default)


def _rule(line: str, field: str) -> tuple[Expression, float]:
    expression, equals, number = line.rpartition("=")
    example = r"write regex=number, for example double_blocks\.0\.=8"
    if not equals or not expression.strip():
        raise ConfigError(f"{field}: {line[:80]!r} is no rule; {example}")
    try:
        value = float(number)
    except ValueError as error:
        raise ConfigError(
            f"{field}: {number.strip()!r} in {line[:80]!r} is not a number; {example}"
        ) from error
    if not math.isfinite(value):
        raise ConfigError(f"{field}: {number.strip()!r} in {line[:80]!r} is not a finite number; {example}")
    return Expression(expression.strip(), field), value
