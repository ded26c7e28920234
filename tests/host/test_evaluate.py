"""Evaluate LoRA in ComfyUI's process: what is drawn, kept, judged and written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from in_graph_lora.nodes.compare_baseline import CompareBaseline
from in_graph_lora.nodes.compare_reports import CompareReports
from in_graph_lora.nodes.evaluate_lora import EvaluateLoRA
from in_graph_lora.trainer.config import SaveConfig, ValidationConfig
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, ModelError
from in_graph_lora.trainer.evidence import questions, spread
from in_graph_lora.trainer.files import sha256
from in_graph_lora.trainer.host import evidence, paths
from in_graph_lora.trainer.host.captioning import ClipCaptioner
from in_graph_lora.trainer.host.encode import HostLatentEncoder
from in_graph_lora.trainer.runs.result import Result

from .loaded import Loaded, train, weight_hash, write_pictures
from .test_captioning import qwen, small_vision  # noqa: F401 (fixtures)
from .test_judges import clip_vision, from_file, vit

HELD_OUT, STEPS = 2, 4
PROMPTS = {"prompts": "aawxbc figurine", "class_prompts": "a figurine", "unrelated_prompts": "a lake"}

HIDDEN = type("Hidden", (), {"unique_id": "1", "prompt": None, "extra_pnginfo": None})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return scan_folder(write_pictures(folder / "in", [(64, 64)] * 6), resolution=64)


@pytest.fixture(scope="module")
def result(loaded: Loaded, folder: Path, dataset: Dataset) -> Result:
    """A run with checkpoints of steps 2 and 4."""
    return train(
        loaded,
        folder / "in",
        folder / "out",
        steps=STEPS,
        save=SaveConfig(every=2),
        validation=ValidationConfig(held_out=HELD_OUT, every=2),
    )


@pytest.fixture(autouse=True)
def output(folder: Path, result: Result, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(folder / "out"))
    for node in (EvaluateLoRA, CompareBaseline):
        monkeypatch.setattr(
            node,
            "hidden",
            HIDDEN,
            raising=False,
        )
    return folder / "out"


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the pictures that are drawn, not taken from the disk."""
    seeds: list[int] = []
    sample = evidence.sample_image

    def counted(model: Any, vae: Any, wanted: Any, unwanted: Any, seed: int, settings: Any) -> torch.Tensor:
        seeds.append(seed)
        return sample(model, vae, wanted, unwanted, seed, settings)

    monkeypatch.setattr(evidence, "sample_image", counted)
    return seeds


def evaluate(loaded: Loaded, **inputs: Any) -> tuple[Any, ...]:
    told = {
        **PROMPTS, "negative": "", "seed": 3, "images_per_prompt": 2, "steps": 1, "cfg": 1.0,
        "sampler_name": "euler", "scheduler": "normal", "width": 64, "height": 64, **inputs,
    }  # fmt: skip
    with torch.inference_mode():
        return EvaluateLoRA.execute(loaded.model, loaded.clip, loaded.vae, **told).args


def run_name() -> str:
    (name,) = paths.runs().names()
    return name


def last_report(output: Path) -> dict[str, Any]:
    newest = max(output.rglob("report.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text(encoding="utf-8"))


def test_checkpoints_of_a_run_are_judged_by_a_vision_model(loaded, dataset, output, pictures, tmp_path):
    lora, strength, grid, text = evaluate(
        loaded,
        run=run_name(),
        dataset=dataset,
        clip_vision=from_file("dinov3", tmp_path),
        strengths="0.5, 1",
        checkpoints=1,
    )
    report = last_report(output)
    labels = [column["label"] for column in report["columns"]]
    assert labels == ["without LoRA", "step 4 × 0.5", "step 4 × 1"]
    assert len(pictures) == 6 * 3
    best = report["columns"][report["best"]["column"]]
    assert strength == best["strength"]
    assert best["digest"] == sha256(next(output.rglob("step_000004.safetensors")))
    assert same(lora, output, 4)
    wanted = {"subject", "leak", "drift", "class_drift", "diversity", "class_diversity", "loss"}
    for column in report["columns"]:
        assert wanted <= set(column["figures"])
        assert len(column["figures"]["loss"]["levels"]) == 8
        assert column["figures"]["loss"]["pictures"] == HELD_OUT
    assert report["columns"][0]["figures"]["drift"]["value"] == pytest.approx(0, abs=1e-5)
    assert report["columns"][-1]["figures"]["drift"]["value"] > 0
    assert report["references_unseen"] is True
    assert "**Best: step" in text
    assert grid.shape[2] > 3 * 64
    assert paths.runs().detail(run_name())["best"] == best["step"]
    page = next(output.rglob("report.html")).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 6 * 3


def same(lora: dict[str, torch.Tensor], output: Path, step: int) -> bool:
    from safetensors.torch import load_file

    there = load_file(next(output.rglob(f"step_{step:06}.safetensors")))
    return there.keys() == lora.keys() and all(torch.equal(there[k], lora[k]) for k in there)


def test_the_held_out_loss_is_that_of_the_training(loaded, dataset, output, result):
    evaluate(loaded, run=run_name(), dataset=dataset)
    logged = {}
    for line in next(output.rglob("events.jsonl")).read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event.get("event") == "Validated" or "best" in event:
            logged[event["step"]] = event["loss"]
    measured = {c["step"] or 0: c["figures"]["loss"]["value"] for c in last_report(output)["columns"]}
    assert set(measured) == {0, 2, 4} == set(logged)
    for step, loss in logged.items():
        assert measured[step] == pytest.approx(loss, rel=1e-4)
    assert len(set(measured.values())) == 3


def test_the_report_says_that_the_training_held_its_weights_in_another_precision(loaded, dataset, output):
    file = next(output.rglob("config.json"))
    before = file.read_text(encoding="utf-8")
    config = json.loads(before)
    config["memory"]["base_precision"] = "fp8"
    file.write_text(json.dumps(config), encoding="utf-8")
    try:
        told = evaluate(loaded, run=run_name(), dataset=dataset)[3]
    finally:
        file.write_text(before, encoding="utf-8")
    assert "the held-out loss is on the weights as loaded; the training held them in fp8" in told
    assert "weights as loaded" not in evaluate(loaded, run=run_name(), dataset=dataset)[3]


def test_pictures_equal_those_of_compare_baseline(loaded, result):
    _, _, grid, _ = evaluate(loaded, lora=result.lora, images_per_prompt=1)
    with torch.inference_mode():
        compared = CompareBaseline.execute(
            loaded.model, loaded.clip, loaded.vae, result.lora, PROMPTS["prompts"], "", 3, 1, 1, 1.0, "euler",
            "normal", 64, 64, "0, 1",
        ).args  # fmt: skip
    for column, images in enumerate((compared[1], compared[2])):
        left = 8 + column * 72
        shown = grid[0, 34:98, left : left + 64]
        assert (shown - images[0]).abs().max() < 1 / 255


def test_an_interrupted_evaluation_goes_on_where_it_was(loaded, result, pictures, monkeypatch):
    asked = dict(lora=result.lora, seed=77)
    stop = mm.InterruptProcessingException

    def interrupt() -> None:
        if len(pictures) == 7:
            raise stop

    with monkeypatch.context() as patched:
        patched.setattr(evidence, "check_interrupt", interrupt)
        with pytest.raises(stop):
            evaluate(loaded, **asked)
    assert len(pictures) == 7
    evaluate(loaded, **asked)
    assert len(pictures) == 12
    evaluate(loaded, **asked)
    assert len(pictures) == 12
    evaluate(loaded, **{**asked, "steps": 2})
    assert len(pictures) == 24


def test_no_model_is_changed(loaded, dataset, result):
    def hashes() -> list[str]:
        with torch.inference_mode():
            mm.load_models_gpu([loaded.model, loaded.clip.patcher])
        return [weight_hash(loaded.model.model), weight_hash(loaded.clip.cond_stage_model)]

    before = hashes()
    evaluate(loaded, lora=result.lora, dataset=dataset, held_out=2, clip_vision=clip_vision("dinov2"), seed=9)
    assert hashes() == before


def test_the_judge_is_loaded_after_the_last_picture(loaded, result, pictures):
    made, order = clip_vision("clip_vision_model"), []
    forward = made.model.forward
    made.model.forward = lambda *a, **k: (order.append(len(pictures)), forward(*a, **k))[1]
    references = torch.rand(5, 48, 96, 3)
    text = evaluate(loaded, lora=result.lora, clip_vision=made, seed=11, references=references)[3]
    assert order
    assert set(order) == {12}
    assert "references have another shape (96×48) than the samples (64×64)" in text


def test_without_judge_dataset_and_references_it_says_what_is_missing(loaded, result):
    text = evaluate(loaded, lora=result.lora)[3]
    assert "there is no judge: only pixels are compared" in text
    assert "connect the dataset that was trained on" in text
    assert "diversity in pixels" in text
    assert "drift in pixels" not in text
    few = evaluate(loaded, lora=result.lora, images_per_prompt=1, clip_vision=clip_vision("dinov2"))[3]
    assert "drift is not measured: it needs two unrelated pictures or more" in few
    assert "diversity is not measured: it needs two pictures of a prompt; raise images_per_prompt" in few
    kid = "KID is left out: it needs 8 unrelated pictures or more, and there are 1"
    assert (kid in few) == spread.available()


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({}, "there is no LoRA to evaluate; connect lora, choose a run, or name lora_files"),
        ({"lora": {}, "prompts": " \n"}, "prompts is empty"),
        ({"lora": {"a": torch.zeros(1)}, "strengths": "0"}, "strengths has only 0"),
        ({"lora": {"a": torch.zeros(1)}, "prompts": "x y\n" * 500, "images_per_prompt": 1}, "max_pictures"),
        ({"lora": {"a": torch.zeros(1)}, "max_drift": float("nan")}, "max_drift is nan"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_anything_is_drawn(loaded, pictures, inputs, told):
    inputs = {
        k: (v if v != "x y\n" * 500 else "\n".join(f"x {i}" for i in range(500))) for k, v in inputs.items()
    }
    with pytest.raises(ConfigError, match=told):
        evaluate(loaded, **inputs)
    assert not pictures


def test_a_run_without_checkpoints_is_named(loaded, output):
    empty = output / "in-graph-lora" / "empty" / "20260101-000000"
    empty.mkdir(parents=True)
    (empty / "run.json").write_text("{}")
    try:
        with pytest.raises(ConfigError, match="run 20260101-000000 has no checkpoint yet"):
            evaluate(loaded, run="empty/20260101-000000")
    finally:
        (empty / "run.json").unlink()


def test_held_out_pictures_are_encoded_once_and_kept(loaded, dataset, result, monkeypatch):
    asked = dict(lora=result.lora, dataset=dataset, held_out=HELD_OUT)
    evaluate(loaded, **asked)
    monkeypatch.setattr(HostLatentEncoder, "encode", lambda *_: pytest.fail("encoded again"))
    evaluate(loaded, **asked)


# What is measured when it is asked for.


def test_a_text_encoder_that_sees_is_asked_about_each_picture_with_the_trigger(
    loaded,
    result,
    output,
    pictures,
    qwen,  # noqa: F811
    monkeypatch,
):
    said, seen = {"is it red?": "Yes.", "a lake?": "No"}, []
    written = ClipCaptioner.answer

    def answer(self: Any, picture: Any, question: str, seed: int = 0) -> str:
        seen.append((len(pictures), question))
        assert isinstance(written(self, picture, question, seed), str)  # the real network answers, at random
        return said.get(question.removesuffix(" Answer with yes or no."), "who knows")

    monkeypatch.setattr(ClipCaptioner, "answer", answer)
    asked = dict(
        lora=result.lora, question_clip=qwen, seed=21,
        questions="is it red?\nfigurine | a lake?\nwhat?\nlake | is it wet?",
    )  # fmt: skip
    assert questions.ON_REQUEST in evaluate(loaded, **asked)[3]
    text = evaluate(loaded, **asked, all_figures=True)[3]
    assert [drawn for drawn, _ in seen] == [12] * (2 * 2 * 3), "after the last picture"
    assert "| questions answered with yes |" in text
    figures = last_report(output)["columns"][1]["figures"]
    assert figures["answers"]["values"] == pytest.approx([1 / 3, 1 / 3])
    assert figures["unclear"]["values"] == pytest.approx([1 / 3, 1 / 3])
    evaluate(loaded, **asked)
    assert len(seen) == 12, "answers are kept"


def test_an_untrained_model_answers_in_words_that_are_counted(loaded, result, output, qwen):  # noqa: F811
    evaluate(loaded, lora=result.lora, question_clip=qwen, images_per_prompt=1, seed=22)
    figures = last_report(output)["columns"][1]["figures"]
    assert 0 <= figures["answers"]["value"] <= 1 - figures["unclear"]["value"]


def test_a_text_encoder_that_cannot_answer_is_refused_before_anything_is_drawn(loaded, result, pictures):
    with pytest.raises(ModelError, match="clip: the text encoder .*Qwen3-VL"):
        evaluate(loaded, lora=result.lora, question_clip=loaded.clip, seed=23)
    assert not pictures
    told = evaluate(loaded, lora=result.lora, questions="is it red?")[3]
    assert "questions are not asked: connect a text encoder that sees to question_clip" in told


def test_fid_and_is_are_measured_when_asked_with_a_warning_for_few_pictures(loaded, result, output, tmp_path):
    pytest.importorskip("torchmetrics")
    asked = dict(lora=result.lora, clip_vision=clip_vision("dinov2"), fid=True, images_per_prompt=20)
    told = evaluate(loaded, **asked)[3]
    assert "FID of 20 pictures says nothing; it needs 2000" in told
    assert "IS is not measured: it needs a classifier; name a folder" in told
    told = evaluate(loaded, **asked, classifier_folder=str(vit(tmp_path / "vit", 5)))[3]
    assert "IS of 20 pictures says nothing; it needs 2000" in told
    for column in last_report(output)["columns"]:
        assert 1 <= column["figures"]["is"]["value"] <= 5
        assert column["figures"]["is"]["pictures"] == 20
    assert column["figures"]["fid"]["value"] >= 0
    told = evaluate(loaded, lora=result.lora, classifier_folder=str(tmp_path / "vit"))[3]
    assert "IS is left out: there are 2 pictures of unrelated prompts" in told


def test_two_reports_are_compared_by_a_node(loaded, result, output):
    for strengths in ("1", "1, 2"):
        evaluate(loaded, lora=result.lora, strengths=strengths, seed=31, clip_vision=clip_vision("dinov2"))
    newest, before, *_ = paths.reports()
    out = CompareReports.execute(before=before, after=newest)
    text, worse = out.args
    assert text.startswith("Nothing is worse")
    assert not worse
    assert "| lora | drift (" in text or "| lora × 1 | drift (" in text or "| without LoRA | drift (" in text
    assert out.ui == {"text": [text]}
    assert CompareReports.fingerprint_inputs(before, newest) != CompareReports.fingerprint_inputs(
        newest, before
    )


@pytest.mark.parametrize("name", ["../../etc", "evidence/none", "/etc", ""])
def test_only_reports_of_the_list_are_read(loaded, result, name):
    evaluate(loaded, lora=result.lora)
    (newest, *_) = paths.reports()
    assert "there is no report" in CompareReports.validate_inputs(newest, name)
    assert CompareReports.validate_inputs(newest, newest) is True
    with pytest.raises(ConfigError, match="there is no report"):
        CompareReports.execute(before=newest, after=name)


def test_a_report_behind_a_link_is_not_listed(output, tmp_path):
    there = paths.reports()
    (tmp_path / "report.json").write_text("{}")
    link = output / "in-graph-lora" / "evidence" / "linked"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path)
    try:
        assert paths.reports() == there
    finally:
        link.unlink()
