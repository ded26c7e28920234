"""Sweeps: a job of each combination, named by its values, and one report over all."""

from __future__ import annotations

from typing import Any

import pytest

from in_graph_lora.trainer.errors import JobError
from in_graph_lora.trainer.jobs import Job, linked
from in_graph_lora.trainer.sweep import Swept, evidence, is_sweep, jobs_of


def job(preview: dict[str, Any] | None = None, **inputs: Any) -> Job:
    graph: dict[str, Any] = {
        "1": {"class_type": "Loader", "inputs": {"file": "a.safetensors"}},
        "2": {"class_type": "LoadDataset", "inputs": {"folder": "toys", "resolution": 64}},
        "3": {"class_type": "TrainPreview", "inputs": preview or {}},
        "4": {
            "class_type": "TrainLoRA",
            "inputs": {
                "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "dataset": ["2", 0],
                "preview": ["3", 0],
                "name": "toy", **inputs,
            },
        },
    }  # fmt: skip
    models = {"model": "m", "clip": "c", "vae": "v"}
    return Job(name="toy", node="4", graph=graph, pictures={"1.png": "x"}, models=models, versions={})


def test_every_combination_is_a_job_whose_name_tells_its_values() -> None:
    own = job(learning_rate={"sweep": [1e-4, 3e-4]}, rank={"sweep": [8, 16]})
    assert is_sweep(own)
    assert not is_sweep(job(learning_rate=1e-4, weights=["1", 0]))
    found = jobs_of(own)
    assert [swept.job.name for swept in found] == [
        f"toy_learning_rate_{rate}_rank_{rank}" for rate in ("0.0001", "0.0003") for rank in (8, 16)
    ]
    for swept in found:
        inputs = swept.job.graph["4"]["inputs"]
        assert inputs["name"] == swept.job.name
        assert {name: inputs[name] for name in swept.values} == swept.values
        assert Job.parsed(swept.job.content(), "it") == swept.job
        assert swept.job.pictures == own.pictures
    assert own.graph["4"]["inputs"]["name"] == "toy", "the sweep itself is left alone"


def test_what_a_swept_loader_changes_is_not_held_against_the_job() -> None:
    own = job()
    own.graph["2"]["inputs"]["resolution"] = {"sweep": [64, 128]}
    own.graph["1"]["inputs"]["file"] = {"sweep": ["sub/a.safetensors", "b.safetensors"]}
    first = jobs_of(own)[0].job
    assert first.name == "toy_file_a_resolution_64"
    assert first.pictures == {}
    assert set(first.models.values()) == {""}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"rank": {"sweep": []}}, "no list of values"),
        ({"rank": {"sweep": [[8]]}}, "no list of values"),
        ({"rank": {"sweep": 8}}, "no list of values"),
        ({"rank": {"sweep": [8, 8]}}, "both called"),
        ({"rank": {"sweep": list(range(1001))}}, "has 1001 trainings"),
        (
            {"target_regex": {"sweep": ["x" * 99, "y"]}, "more_of_it_and_much_longer" * 4: {"sweep": [1]}},
            "named",
        ),
    ],
)
def test_a_sweep_that_is_none_is_refused(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said):
        jobs_of(job(**inputs))


def test_one_report_holds_all_against_each_other_with_the_pictures_of_the_preview() -> None:
    preview = {"prompts": "a toy\na red toy", "cfg": 4.0, "sampling_steps": 8, "width": 0, "height": 96}
    own = jobs_of(job(preview, rank={"sweep": [8, 16]}))
    graph, node = evidence(own, ["a.safetensors", "b.safetensors"])
    inputs = graph[node]["inputs"]
    assert inputs["lora_files"] == "a.safetensors\nb.safetensors"
    assert (inputs["prompts"], inputs["steps"], inputs["cfg"]) == ("a toy\na red toy", 8, 4.0)
    assert (inputs["width"], inputs["height"]) == (64, 96)
    assert inputs["max_pictures"] == 3 * 2 * inputs["images_per_prompt"]
    assert {linked(inputs[name]) for name in ("model", "dataset")} == {"1", "2"}
    assert set(graph) == {"1", "2", node}, "what the report needs, and no training"


def test_no_report_without_prompts_or_over_several_models() -> None:
    own = jobs_of(job(rank={"sweep": [8, 16]}))
    with pytest.raises(JobError, match="give --prompt"):
        evidence(own, ["a", "b"])
    assert evidence(own, ["a", "b"], ["a toy"])[0]["evidence"]["inputs"]["prompts"] == "a toy"
    models = job({"prompts": "a toy"})
    models.graph["1"]["inputs"]["file"] = {"sweep": ["a", "b"]}
    with pytest.raises(JobError, match="not one model"):
        evidence(jobs_of(models), ["a", "b"])
    pictures: list[Swept]
    pictures = jobs_of(job({"prompts": "a toy"}, dataset=["2", 0]))
    assert "dataset" in evidence(pictures, ["a"])[0]["evidence"]["inputs"]
