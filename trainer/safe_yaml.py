"""YAML that somebody else has written: plain values only, and no more of them than fit."""

from __future__ import annotations

from typing import Any

import yaml

MAX_NODES = 50_000
"""Of a file with all its aliases written out."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that counts what aliases stand for: each may double what the one before it holds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = 0
        self._counts: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        before, alias = self._count, self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        # An alias inside of what it stands for has no count yet.
        self._count += self._counts.get(id(node), MAX_NODES + 1) if alias else 1
        if self._count > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values, with those that aliases repeat")
        if not alias:
            self._counts[id(node)] = self._count - before
        return node


def loads(text: str) -> Any:
    """Plain values, lists and tables. Raises ValueError with the line, where there is one."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        hint = "; paths with backslashes go without quotes" if "escape character" in str(e.problem) else ""
        raise ValueError(f"{e.problem}{line}{hint}") from e
    except yaml.YAMLError as e:
        raise ValueError(" ".join(str(e).split())) from e
