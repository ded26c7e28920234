"""Plan Training on a real server, alone in its graph."""

from __future__ import annotations

from workbench.client import Client, Prompt

from .test_training import graph, pictures  # noqa: F401 - a fixture


def planning(folder: str) -> Prompt:
    """The graph of a training with Plan Training in the place of Train LoRA, and nothing behind it."""
    prompt = {key: node for key, node in graph(folder).items() if key in ("1", "2", "3", "4")}
    prompt["4"]["class_type"] = "PlanTraining"
    return prompt


def test_plan_training_runs_alone_says_what_fits_and_leaves_no_run(client: Client, server, pictures):  # noqa: F811
    runs = server.base / "output" / "in-graph-lora" / "live"
    before = sorted(runs.rglob("*"))
    (text,) = client.run(planning(pictures)).outputs["4"]["text"]
    assert "2 × 64×64 a pass" in text
    assert "| 24 GB | yes |" in text
    assert sorted(runs.rglob("*")) == before
