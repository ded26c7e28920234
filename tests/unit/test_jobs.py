"""A job's file: what is in it, and what is said when it or the world was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.errors import DatasetError, JobError, ModelError
from in_graph_lora.trainer.jobs import FORMAT, Job, manifest, needed

GRAPH = {
    "1": {"class_type": "Loader", "inputs": {"file": "a.safetensors"}, "_meta": {"title": "x"}},
    "2": {"class_type": "LoadDataset", "inputs": {"folder": "toys", "size": [64, 64]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}},
    "4": {"class_type": "TrainLoRA", "inputs": {"model": ["1", 0], "dataset": ["2", 0], "gone": ["7", 0]}},
}


def records(root: str, *names: str) -> Dataset:
    return Dataset(
        records=tuple(
            ImageRecord(path=Path(root) / name, caption="a toy", size=(64, 64), digest=name) for name in names
        )
    )


def job(dataset: Dataset) -> Job:
    return Job(
        name="toy",
        node="4",
        graph=needed(GRAPH, "4"),
        pictures=manifest(dataset),
        models={"model": "m", "clip": "", "vae": "v"},
        versions={"comfyui": "0.30.0"},
    )


def test_a_graph_is_cut_to_what_the_node_needs() -> None:
    cut = needed(GRAPH, "4")
    assert list(cut) == ["1", "2", "4"]
    assert cut["1"] == {"class_type": "Loader", "inputs": {"file": "a.safetensors"}}


def test_a_job_is_read_as_it_was_written_and_written_once(tmp_path: Path) -> None:
    own = job(records("/a/toys", "1.png"))
    assert Job.read(own.write(tmp_path / "x")) == Job.read(tmp_path / "x") == own
    first, again = own.write_new(tmp_path), own.write_new(tmp_path)
    other = replace(own, models={}).write_new(tmp_path)
    assert [p.parent.name for p in (first, again, other)] == ["toy", "toy", "toy_2"]


def test_pictures_are_the_same_in_another_folder_and_named_where_they_are_not() -> None:
    own = job(records("/a/toys", "1.png", "more/2.png", "3.png"))
    own.check_pictures(records("/elsewhere", "1.png", "more/2.png", "3.png"))
    now = records("/a/toys", "1.png", "more/2.png", "4.png")
    now = now.with_records([now.records[0].with_caption("a red toy"), *now.records[1:]])
    with pytest.raises(DatasetError, match=r"\(changed: 1\.png; missing: 3\.png; new: 4\.png\)"):
        own.check_pictures(now)
    twice = now.with_records([*now.records, now.records[1]])
    assert manifest(twice)["more/2.png"] != manifest(now)["more/2.png"]
    assert manifest(records("/a")) == {}


def test_another_model_of_the_same_name_is_named() -> None:
    own = job(records("/a", "1.png"))
    own.check_models({"model": "m", "clip": "other, but it was not known", "vae": ""})
    with pytest.raises(ModelError, match="model and vae are not what"):
        own.check_models({"model": "n", "clip": "", "vae": "w"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c | {"format": FORMAT + 1}, "reads up to"),
        (lambda c: c | {"format": "1"}, "is no job"),
        (lambda c: [c], "is no job"),
        (lambda c: c | {"node": "1"}, "changed by hand"),
        (lambda c: c | {"node": ["4"]}, "changed by hand"),
        (lambda c: c | {"graph": {"4": {"class_type": "TrainLoRA"}}}, "changed by hand"),
        (lambda c: c | {"pictures": []}, "changed by hand"),
        (lambda c: c | {"models": {"model": 1}}, "changed by hand"),
        (lambda c: c | {"more": 1}, "changed by hand"),
        (lambda c: {k: v for k, v in c.items() if k != "name"}, "changed by hand"),
    ],
)
def test_a_tampered_job_is_refused(tmp_path: Path, change, said: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(change(job(records("/a", "1.png")).content())))
    with pytest.raises(JobError, match=said):
        Job.read(tmp_path)


def test_a_missing_or_torn_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="missing or no whole JSON"):
        Job.read(tmp_path)
    (tmp_path / "job.json").write_text('{"format": 1,')
    with pytest.raises(JobError, match="missing or no whole JSON"):
        Job.read(tmp_path)
