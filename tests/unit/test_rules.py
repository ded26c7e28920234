"""Expressions from a shared workflow are bounded in time, length and size; the server goes on meanwhile."""

from __future__ import annotations

import threading
import time

import pytest
from torch import nn

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.adapters.targets import target_layers
from in_graph_lora.trainer.config import AdapterConfig
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.rules import MAX_LENGTH, MAX_SECONDS, Expression, Rules

BACKTRACKING = (r"^(\w|\w\w|\.)*[^\w.]$", r"^(.*?.*?)*[A-Z]$", r"(?R)")
LAYER = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"


def net() -> nn.Module:
    """One layer with a name as long as real ones."""
    module: nn.Module = nn.Linear(4, 4)
    for name in reversed(LAYER.split(".")):
        module = nn.ModuleDict({name: module})
    return module


@pytest.mark.parametrize("expression", BACKTRACKING)
@pytest.mark.parametrize("field", ["targets", "rank_by_block", "lr_by_block"])
def test_an_expression_that_backtracks_for_ever_is_given_up_and_named(field: str, expression: str) -> None:
    text = f"regex:{expression}" if field == "targets" else f"{expression}=1"
    config = AdapterConfig(rank=2, targets="all linear") if field != "targets" else AdapterConfig(rank=2)
    config = AdapterConfig(rank=2, **{"targets": config.targets, field: text})
    started = time.perf_counter()
    with (
        pytest.raises(ConfigError, match=r"takes more than 0\.5 s") as said,
        injected(net(), config, seed=0),
    ):
        pass
    assert expression in str(said.value)
    assert field in str(said.value)
    assert time.perf_counter() - started < 60, "it would take years"


def test_other_threads_run_while_an_expression_is_searched() -> None:
    ticks: list[float] = []
    done = threading.Event()

    def clock() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.01)

    thread = threading.Thread(target=clock)
    thread.start()
    with pytest.raises(ConfigError):
        Expression(BACKTRACKING[0], "targets").found_in(LAYER)
    done.set()
    thread.join()
    assert len(ticks) > 5, "a search that holds the interpreter lets nobody tick"


def test_the_time_of_all_layers_counts_together() -> None:
    """Each search alone is quick enough."""

    def seconds(name: str) -> float:
        started = time.perf_counter()
        Expression(BACKTRACKING[1], "targets").found_in(name)
        return time.perf_counter() - started

    def quickest(name: str) -> float:  # what else the machine does only adds to it
        return min(seconds(name) for _ in range(5))

    name = next("a" * n for n in range(5, 13) if quickest("a" * n) > MAX_SECONDS / 100)
    expression = Expression(BACKTRACKING[1], "targets")
    with pytest.raises(ConfigError, match="takes more than"):
        any(expression.found_in(name) for _ in range(10_000))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a" * (MAX_LENGTH + 1), f"{MAX_LENGTH + 1} characters; at most {MAX_LENGTH}"),
        ("((a{1000}){1000}){1000}", "multiply to more than"),
        ("a{1,9999999999999999}", "multiply to more than"),
        ("(" * 900, "is not a regular expression"),
        ("(?:" * 240 + "a" + ")" * 240, "is not a regular expression"),
        ("[", "is not a regular expression"),
        ("(?P<a>x)(?P<a", "is not a regular expression"),
    ],
)
def test_what_cannot_be_compiled_in_reason_is_refused_at_once(expression: str, message: str) -> None:
    started = time.perf_counter()
    for make in (lambda: AdapterConfig(targets=f"regex:{expression}"),
                 lambda: AdapterConfig(rank_by_block=f"{expression}=4")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            make()
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("attn", "is no rule"),
        ("=4", "is no rule"),
        ("attn=four", "is not a number"),
        ("attn=nan", "is not a finite number"),
        ("[=4", "is not a regular expression"),
    ],
)
def test_a_line_that_is_no_rule_is_named(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rules.parse(f"# a remark\n{line}", "rank_by_block")


def test_the_first_rule_that_is_found_decides() -> None:
    rules = Rules.parse("attn2=8\nattn=4\n\n# the rest\n.=2", "rank_by_block")
    assert [rules.value(name, 1) for name in ("attn2.to_q", "attn1.to_q", "ff")] == [8, 4, 2]
    assert rules.values == (8, 4, 2)


def test_expressions_of_everyday_select_what_python_would() -> None:
    found = target_layers(net(), r"regex:attn[12]\.to_[qkv]$")
    assert list(found) == [LAYER]
