"""Every test that docs/promises.md names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path


def functions_in(path: Path) -> set[str]:
    if not path.exists():
        return set()
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_each_promise_names_tests_that_are_there(repo_root: Path):
    text = (repo_root / "docs" / "promises.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    named = [re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row) for row in rows]
    assert all(named), "a promise without a test"
    missing = [
        f"{path}::{name}" for row in named for path, name in row if name not in functions_in(repo_root / path)
    ]
    assert not missing
