"""Settings that differ from layer to layer: lines of `regex=number`, the first match decides."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class Rules:
    patterns: tuple[re.Pattern[str], ...] = ()
    values: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str, field: str) -> Rules:
        """Empty lines and lines that start with # are left out; anything else must be a rule."""
        lines = [line.strip() for line in text.splitlines()]
        rules = [_rule(line, field) for line in lines if line and not line.startswith("#")]
        return cls(tuple(p for p, _ in rules), tuple(v for _, v in rules))

    def value(self, layer: str, default: float) -> float:
        """The value of the first rule whose expression is found in the layer's name."""
        for pattern, value in zip(self.patterns, self.values, strict=True):
            if pattern.search(layer):
                return value
        return default


def _rule(line: str, field: str) -> tuple[re.Pattern[str], float]:
    expression, equals, number = line.rpartition("=")
    example = r"write regex=number, for example double_blocks\.0\.=8"
    if not equals or not expression.strip():
        raise ConfigError(f"{field}: {line!r} is no rule; {example}")
    try:
        pattern = re.compile(expression.strip())
    except re.error as error:
        raise ConfigError(f"{field}: {expression.strip()!r} is not a regular expression ({error})") from error
    try:
        value = float(number)
    except ValueError as error:
        raise ConfigError(f"{field}: {number.strip()!r} in {line!r} is not a number; {example}") from error
    if not math.isfinite(value):
        raise ConfigError(f"{field}: {number.strip()!r} in {line!r} is not a finite number; {example}")
    return pattern, value
