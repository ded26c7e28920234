"""Compare Reports on a real server, over HTTP, on a good report and a worse one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.client import Client, Prompt, PromptRejected
from workbench.dev.server import Server

from ..unit.test_evidence import drawn, found, written

GOOD, WORSE = "evidence/20260101-000000", "evidence/20260102-000000"


@pytest.fixture(scope="module")
def reports(server: Server) -> Path:
    """Two in the server's output folder, of the same prompts and seeds."""
    root = server.base / "output" / "in-graph-lora"
    for name, shares in ((GOOD, {"trigger": 1.0}), (WORSE, {"trigger": 0.2, "class": 0.9})):
        (root / name).mkdir(parents=True, exist_ok=True)
        written(root / name, "report", found(drawn(shares)))
    return root


def comparing(before: str, after: str) -> Prompt:
    return {
        "1": {"class_type": "CompareReports", "inputs": {"before": before, "after": after}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }


def told(outputs: dict[str, Any]) -> tuple[str, str]:
    """(the node's text, its output `worse`)"""
    return outputs["1"]["text"][0], json.dumps(outputs["2"])


def test_a_worse_report_is_told_from_a_good_one_over_http(client: Client, reports: Path) -> None:
    known = client.object_info("CompareReports")["CompareReports"]["input"]["required"]["before"]
    assert {GOOD, WORSE} <= set(json.loads(json.dumps(known))[1]["options"])
    done = client.run(comparing(GOOD, WORSE))
    assert done.status == "success", done.error
    text, worse = told(done.outputs)
    assert text.startswith("**Worse**: ")
    assert "subject fidelity (step 10)" in text.splitlines()[0]
    assert "True" in worse
    text, worse = told(client.run(comparing(GOOD, GOOD)).outputs)
    assert text.startswith("Nothing is worse by more than its interval.")
    assert "False" in worse


@pytest.mark.parametrize("name", ["../../etc", "evidence/none", ""])
def test_a_report_that_is_not_there_is_refused_with_a_sentence(
    client: Client, reports: Path, name: str
) -> None:
    with pytest.raises(PromptRejected) as refused:
        client.queue(comparing(GOOD, name))
    assert "choose one of the list, or run Evaluate LoRA" in json.dumps(refused.value.details)


def test_a_damaged_report_gives_a_sentence_on_the_node(client: Client, reports: Path) -> None:
    broken = reports / "evidence" / "20260103-000000" / "report.json"
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("{", encoding="utf-8")
    try:
        done = client.run(comparing(GOOD, "evidence/20260103-000000"))
    finally:
        broken.unlink()
    assert done.status == "error"
    assert "report.json is no report of Evaluate LoRA" in done.error["exception_message"]
