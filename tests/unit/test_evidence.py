"""Figures over pictures whose truth is known, since they were painted so; intervals, the choice, reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, ModelError
from in_graph_lora.trainer.evidence import perceptual, questions, regression, spread
from in_graph_lora.trainer.evidence.choice import Bounds, choose
from in_graph_lora.trainer.evidence.figures import BY_KEY, FIGURES, Measured, bootstrap, change
from in_graph_lora.trainer.evidence.kept import KeptPictures, tensors_digest
from in_graph_lora.trainer.evidence.known import Known, gather, trained_picture
from in_graph_lora.trainer.evidence.measure import Copy, Findings, measure
from in_graph_lora.trainer.evidence.page import page
from in_graph_lora.trainer.evidence.report import Report
from in_graph_lora.trainer.evidence.shots import BASE, Candidate, check_budget, evenly, shots
from in_graph_lora.trainer.evidence.sight import Sight, look, low_pass
from in_graph_lora.trainer.text import lines

PACK = Path(__file__).resolve().parents[2]
SHOTS = shots({"trigger": ["x a", "x b"], "class": ["a", "b"], "unrelated": ["c", "d"]}, seed=0, count=6)
LORA = Candidate(label="step 10", name="l", step=10, strength=1.0, digest="d")
WIDTH = 8


class ColourJudge:
    """Features are the mean colour of the four quarters."""

    name, digest, reads = "colours", "0", False

    def see(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        small = [np.array(p.convert("RGB").resize((2, 2), Image.Resampling.BOX)) for p in pictures]
        return torch.tensor(np.stack(small), dtype=torch.float32).flatten(1) / 255 - 0.5

    def read(self, texts: Sequence[str]) -> torch.Tensor:
        raise AssertionError


def painted(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)


def seen(pictures: Sequence[Image.Image], judge: ColourJudge | None = None) -> Sight:
    return look(judge or ColourJudge(), [p.copy for p in pictures], "pictures")


SUBJECT = [painted(1), *(Image.blend(painted(1), painted(i), 0.15) for i in range(100, 105))]
BASE_PICTURES = [painted(1000 + i) for i in range(len(SHOTS))]


def drawn(shares: dict[str, float], by: Image.Image | None = None) -> list[Image.Image]:
    """The base's pictures, with this share of each kind's replaced by the subject (or by `by`)."""
    out = list(BASE_PICTURES)
    for kind, share in shares.items():
        rows = [i for i, shot in enumerate(SHOTS) if shot.kind == kind]
        for i in rows[: round(share * len(rows))]:
            out[i] = by or Image.blend(painted(1), painted(2000 + i), 0.15)
    return out


def found(pictures: list[Image.Image], known: Known | None = None) -> Findings:
    known = known or Known(references=seen(SUBJECT))
    return measure(SHOTS, seen(BASE_PICTURES), seen(pictures), known)


@pytest.mark.parametrize(
    ("key", "kind"),
    [("subject", "trigger"), ("leak", "class"), ("drift", "unrelated"), ("class_drift", "class")],
)
def test_a_figure_follows_the_share_of_pictures_that_became_the_subject(key, kind):
    values = [found(drawn({kind: share})).figures[key].value for share in (0, 0.25, 0.5, 0.75, 1)]
    assert values == sorted(values)
    assert values[0] < values[1] < values[-1]


def test_pictures_of_another_kind_do_not_count():
    clean, other = found(list(BASE_PICTURES)), found(drawn({"class": 1.0}))
    for key in ("subject", "drift", "diversity"):
        assert clean.figures[key].values == other.figures[key].values


def test_no_drift_is_0_and_another_picture_in_each_place_is_about_1():
    assert found(list(BASE_PICTURES)).figures["drift"].value == pytest.approx(0, abs=1e-5)
    others = [painted(5000 + i) for i in range(len(SHOTS))]
    assert found(others).figures["drift"].value == pytest.approx(1, abs=0.25)


def test_diversity_falls_when_each_prompt_gives_one_picture():
    rows = [i for i, shot in enumerate(SHOTS) if shot.kind == "class"]
    same = list(BASE_PICTURES)
    for i in rows:  # one for each prompt
        same[i] = painted(3 if SHOTS[i].prompt == "a" else 4)
    assert found(same).figures["class_diversity"].value == pytest.approx(0, abs=1e-5)
    assert found(list(BASE_PICTURES)).figures["class_diversity"].value > 0.3


def test_near_copies_are_found_and_named_and_other_pictures_of_the_subject_are_not():
    trained = [painted(1), painted(7), *SUBJECT[2:4]]
    known = Known(references=seen(SUBJECT[3:]), trained=seen(trained), trained_names=["p0", "p1", "p2", "p3"])
    pictures = list(BASE_PICTURES)
    for i in range(12):
        pictures[i] = Image.blend(painted(1), painted(3000 + i), 0.4)
    pictures[0] = pictures[3] = Image.blend(painted(7), painted(8), 0.02)
    findings = found(pictures, known)
    assert [(c.shot, c.name) for c in findings.copies] == [(0, "p1"), (3, "p1")]
    assert findings.figures["copies"].value == pytest.approx(2 / 12)
    report = reported(findings, known)
    assert "step 10: 2 of 12 samples are near copies of p1" in report.warnings()


def test_without_a_judge_pixels_are_measured():
    blind = look(None, [p.copy for p in BASE_PICTURES], "")
    figures = measure(SHOTS, blind, blind, Known()).figures
    assert set(figures) == {"pixel_drift", "pixel_diversity"}
    assert all(BY_KEY[key].needs == "pictures" for key in figures)


# Intervals.


def test_the_interval_covers_the_truth_in_about_95_of_100_draws():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(30, generator=generator).tolist() for _ in range(200)]
    covered = sum(low <= 0 <= high for low, high in map(bootstrap, rows))
    assert 176 <= covered <= 198


def test_an_interval_is_the_same_each_time_and_a_single_picture_has_none():
    assert bootstrap([0.1, 0.5, 0.9]) == bootstrap([0.1, 0.5, 0.9])
    assert bootstrap([0.1]) is None


def test_equal_seeds_tell_a_small_change_that_means_alone_would_not():
    before = Measured(figure=BY_KEY["subject"], values=[i / 20 for i in range(20)])
    after = Measured(figure=BY_KEY["subject"], values=[i / 20 + 0.02 for i in range(20)])
    _, paired = change(before, after, paired=True)
    _, apart = change(before, after, paired=False)
    assert paired is not None
    assert apart is not None
    assert 0 < paired[0] <= paired[1]
    assert apart[0] < 0 < apart[1]


# The choice.


def column(step: int, strength: float = 1.0, **values: float) -> tuple[Candidate, dict[str, Measured]]:
    candidate = Candidate(label=f"step {step}", step=step, strength=strength)
    return candidate, {k: Measured(figure=BY_KEY[k], values=[v, v]) for k, v in values.items()}


def test_the_best_is_the_most_faithful_within_bounds():
    columns = [
        column(0, 0.0, subject=0.9, drift=0.0),
        column(1, subject=0.5, drift=0.1, copies=0.0),
        column(2, subject=0.7, drift=0.2, copies=0.0),
        column(3, subject=0.8, drift=0.2, copies=0.5),
        column(4, subject=0.9, drift=0.9, copies=0.0),
    ]
    choice = choose(columns, Bounds())
    assert choice.column == 2
    assert "of the 2 within bounds (2 are not)" in choice.reason
    assert choose(columns, Bounds(drift=1.0)).column == 4
    assert choose(columns, Bounds(copies=0.6)).column == 3


def test_where_none_is_within_bounds_the_least_drift_is_taken_and_said():
    columns = [column(0, 0.0), column(1, subject=0.9, drift=0.9), column(2, subject=0.5, drift=0.7)]
    choice = choose(columns, Bounds())
    assert (choice.column, "none stays within bounds" in choice.reason) == (2, True)


def test_without_a_judge_the_lowest_held_out_loss_decides():
    columns = [column(0, 0.0, loss=0.1), column(1, loss=0.3), column(2, loss=0.2), column(3, loss=0.25)]
    assert choose(columns, Bounds()).column == 2


def test_without_any_figure_of_fidelity_it_says_what_to_connect():
    choice = choose([column(0, 0.0, drift=0.0), column(1, drift=0.1)], Bounds())
    assert "connect a judge and references" in choice.reason


# Reports.


def reported(findings: Findings, known: Known | None = None) -> Report:
    base = measure(SHOTS, seen(BASE_PICTURES), seen(BASE_PICTURES), known or Known(references=seen(SUBJECT)))
    columns = [(BASE, base), (LORA, findings)]
    return Report(
        shots=SHOTS,
        columns=columns,
        choice=choose([(c, f.figures) for c, f in columns], Bounds()),
        bounds=Bounds(),
        judge="colours 0",
        settings={"seeds": [0]},
        unseen=True,
    )


def written(folder: Path, name: str, findings: Findings) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(reported(findings).to_dict()), encoding="utf-8")
    return path


def test_warnings_name_what_speaks_against_the_lora():
    leaking = reported(found(drawn({"trigger": 1.0, "class": 1.0, "unrelated": 1.0}))).warnings()
    assert any("of the class without the trigger are drawn nearer to the subject" in w for w in leaking)
    assert any("drift is" in w for w in leaking)
    untrained = reported(found(list(BASE_PICTURES))).warnings()
    assert any("the subject is no nearer than without the LoRA" in w for w in untrained)
    good = reported(found(drawn({"trigger": 1.0}))).warnings()
    assert good == []


def test_references_that_were_trained_on_are_named_as_such():
    report = replace(reported(found(drawn({"trigger": 1.0}))), unseen=False)
    assert any("the references are training pictures" in w for w in report.warnings())


def test_the_table_has_value_interval_and_count():
    row = next(
        line for line in reported(found(drawn({"trigger": 1.0}))).markdown().splitlines() if "PRES" in line
    )
    assert "12 class" in row
    assert " to " in row


def test_figures_that_do_not_follow_the_truth_are_shown_on_request_only():
    report = reported(found(list(BASE_PICTURES)))
    hidden = {f.key for f in FIGURES if not f.shown}
    assert not hidden & {f.key for f in report.figures}
    everything = {f.key for f in replace(report, all_figures=True).figures}
    assert everything == {key for _, findings in report.columns for key in findings.figures}


def test_the_page_holds_its_pictures_and_asks_for_nothing():
    text = page(reported(found(drawn({"trigger": 1.0}))), lambda column, shot: painted(shot), "<my> lora")
    assert "&lt;my&gt; lora" in text
    assert text.count("data:image/jpeg;base64,") == 2 * 18
    assert "<svg" in text
    assert "http" not in text
    assert "<script" not in text
    assert "<td>12 trigger</td>" in text
    assert 'src="data:' in text


def test_near_copies_are_shown_beside_what_they_copy(tmp_path):
    copied = replace(
        found(drawn({"trigger": 1.0})), copies=[Copy(shot=0, name="p01.png"), Copy(shot=1, name="gone")]
    )
    data = dataset(tmp_path / "data", [painted(i) for i in range(3)])
    text = page(reported(copied), lambda column, shot: painted(shot), "l", partial(trained_picture, data))
    _, _, pairs = text.partition("<h2>Near copies</h2>")
    pairs, _, _ = pairs.partition("<h2>Pictures</h2>")
    assert pairs.count("data:image/jpeg") == 2, "what is gone is not shown"
    assert "x a<br>seed 0" in pairs
    assert "p01.png" in pairs
    assert "Near copies" not in page(reported(copied), lambda column, shot: painted(shot), "l")


# Regression.


def run_script(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PACK / "scripts" / "compare_reports.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_fails_for_a_worse_report_only(tmp_path):
    good = written(tmp_path, "good", found(drawn({"trigger": 1.0})))
    bad = written(tmp_path, "bad", found(drawn({"trigger": 0.2, "class": 0.9})))
    worse = run_script(good, bad)
    assert worse.returncode == 1, worse.stderr
    assert "| step 10 | subject fidelity" in worse.stdout
    assert "worse" in worse.stdout
    assert run_script(good, good).returncode == 0
    refused = run_script(good, tmp_path / "missing.json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "missing.json is no report of Evaluate LoRA" in refused.stderr
    same = regression.compare(regression.read_report(good), regression.read_report(good))
    assert len(same) > 10
    assert not any(d.worse or d.better for d in same)
    better = regression.compare(regression.read_report(bad), regression.read_report(good))
    assert {d.figure.key for d in better if d.better} >= {"subject", "leak", "class_drift"}
    assert {d.figure.key for d in better if d.worse} <= {"diversity"}  # the subject is one picture


def test_reports_of_other_judges_and_files_that_are_none_are_refused(tmp_path):
    good = written(tmp_path, "good", found(drawn({"trigger": 1.0})))
    content = json.loads(good.read_text())
    with pytest.raises(ConfigError, match="the judges differ"):
        regression.compare(content, {**content, "judge": "other"})
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"none\.json is no report"):
        regression.read_report(tmp_path / "none.json")
    broken = {**content, "columns": [{"label": "step 10", "figures": {"subject": {"value": 1}}}]}
    with pytest.raises(ConfigError, match="not whole"):
        regression.compare(content, broken)
    with pytest.raises(ConfigError, match="not whole"):
        regression.compare(content, {"format": content["format"]})


# What is drawn.


def test_every_kind_of_prompt_gets_the_same_seeds():
    assert {shot.kind: [] for shot in SHOTS}.keys() == {"trigger", "class", "unrelated"}
    for prompt in ("x a", "b", "d"):
        assert [shot.seed for shot in SHOTS if shot.prompt == prompt] == list(range(6))


def test_500_prompts_are_counted_before_anything_is_drawn():
    many = shots({"trigger": lines("\n".join(f"x {i}" for i in range(500)))}, 0, 4)
    with pytest.raises(
        ConfigError, match=r"500 prompts × 4 seeds × 2 columns are 4000 pictures and max_pictures"
    ):
        check_budget(many, [BASE, LORA], 500)
    check_budget(many, [BASE, LORA], 4000)


def test_no_prompt_with_the_trigger_is_refused():
    with pytest.raises(ConfigError, match="prompts is empty"):
        shots({"trigger": [], "class": ["a"]}, 0, 1)


def test_steps_are_evenly_spaced_and_end_with_the_last():
    steps = list(range(100, 1100, 100))
    assert evenly(steps, 4) == [200, 500, 700, 1000]
    assert evenly(steps, 0) == evenly(steps, 20) == steps
    assert evenly(steps, 1) == [1000]


def test_a_kept_picture_is_found_by_all_that_decides_it(tmp_path):
    kept = KeptPictures(tmp_path, {"steps": 20})
    kept.keep(LORA, SHOTS[0], painted(1))
    assert kept.has(LORA, SHOTS[0])
    assert kept.has(replace(LORA, name="renamed", label="other"), SHOTS[0])
    assert not kept.has(replace(LORA, strength=0.5), SHOTS[0])
    assert not kept.has(replace(LORA, digest="e"), SHOTS[0])
    assert not kept.has(BASE, SHOTS[0])
    assert not kept.has(LORA, replace(SHOTS[0], seed=9))
    assert not KeptPictures(tmp_path, {"steps": 21}).has(LORA, SHOTS[0])
    assert np.array_equal(np.array(kept.open(LORA, SHOTS[0])), np.array(painted(1)))


def test_the_digest_of_a_lora_sees_values_and_names():
    lora = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert tensors_digest(lora) == tensors_digest(dict(reversed(lora.items())))
    assert tensors_digest(lora) != tensors_digest({"a": torch.ones(2), "b": torch.zeros(2)})
    assert tensors_digest({"a": torch.zeros(2, dtype=torch.bfloat16)}) != tensors_digest(
        {"a": torch.zeros(2)}
    )


# Bad input.


def dataset(folder: Path, pictures: Sequence[Image.Image]):
    folder.mkdir()
    for i, picture in enumerate(pictures):
        picture.resize((128, 128), Image.Resampling.NEAREST).save(folder / f"p{i:02}.png")
        (folder / f"p{i:02}.txt").write_text("x a")
    return scan_folder(folder, resolution=128)


def told(tmp_path: Path, trained: int, references: Sequence[Image.Image], held_out: int = 0):
    data = dataset(tmp_path / "data", [painted(i) for i in range(trained)]).hold_out(held_out)
    return gather(ColourJudge(), SHOTS, data, references, (128, 128))


def test_without_references_and_dataset_it_says_what_to_connect():
    _, notes = gather(None, SHOTS, None, [], (64, 64))
    text = "\n".join(notes)
    assert "there are no references" in text
    assert "connect the dataset" in text
    assert "there is no judge" in text


def test_one_reference_says_little(tmp_path):
    _, notes = told(tmp_path, 5, [painted(50)])
    assert any("there is 1 reference only" in note for note in notes)


def test_held_out_pictures_are_references_and_are_not_taken_for_trained(tmp_path):
    known, _ = told(tmp_path, 8, [], held_out=3)
    assert (known.unseen, len(known.references), len(known.trained)) == (True, 3, 5)


def test_a_reference_that_was_trained_on_is_left_out_and_told(tmp_path):
    known, notes = told(tmp_path, 5, [painted(0), painted(60), painted(61)])
    assert len(known.references) == 2
    assert "1 of 3 references are training pictures and were left out" in notes
    only, _ = gather(
        ColourJudge(), SHOTS, scan_folder(tmp_path / "data", resolution=128), [painted(0)], (128, 128)
    )
    assert not only.unseen


def test_references_of_another_shape_are_told(tmp_path):
    _, notes = told(tmp_path, 5, [painted(60, (96, 32))] * 5)
    assert any("references have another shape (96×32) than the samples (128×128)" in note for note in notes)


def test_features_that_are_no_numbers_name_the_judge():
    class Broken(ColourJudge):
        def see(self, pictures):
            return torch.full((len(pictures), 3), float("nan"))

    with pytest.raises(ModelError, match="the judge colours gives NaN or infinite features of pictures"):
        seen([painted(1)], Broken())


def test_a_picture_is_compared_by_its_centre_square():
    wide = Image.new("RGB", (96, 32))
    wide.paste(painted(1), (32, 0))
    assert torch.equal(low_pass(wide), low_pass(painted(1)))


# torchmetrics, which need not be there.


def test_without_torchmetrics_the_rest_is_measured(monkeypatch):
    monkeypatch.setattr(spread, "available", lambda: False)
    figures = found(list(BASE_PICTURES)).figures
    assert "kid" not in figures
    assert "drift" in figures
    assert "pip install -r requirements-evidence.txt" in spread.MISSING


def test_kid_is_about_0_for_the_same_distribution_and_clear_for_another():
    pytest.importorskip("torchmetrics")
    same = found([painted(7000 + i) for i in range(len(SHOTS))]).figures["kid"]
    other = found(drawn({"unrelated": 1.0})).figures["kid"]
    assert same.interval[0] < 0 < same.interval[1]
    assert other.interval[0] > 0


def test_fid_of_a_set_with_itself_is_0_and_it_has_no_interval():
    pytest.importorskip("torchmetrics")
    own = seen(BASE_PICTURES)
    figures = measure(SHOTS, own, own, Known(), fid=True).figures
    assert figures["fid"].value == pytest.approx(0, abs=1e-6)
    assert figures["fid"].interval is None
    assert Measured.from_dict("fid", figures["fid"].to_dict()).value == figures["fid"].value


def test_without_torchmetrics_the_missing_package_is_named_with_the_pip_line(monkeypatch):
    monkeypatch.setattr(spread, "available", lambda: False)
    assert spread.MISSING.endswith("torchmetrics is missing; pip install -r requirements-evidence.txt")
    assert perceptual.missing().endswith("torchmetrics is missing; pip install -r requirements-evidence.txt")
    assert spread.inception_score(torch.zeros(100, 3)) == {}
    assert "torchmetrics" in (PACK / "requirements-evidence.txt").read_text()


def test_the_inception_score_is_the_number_of_classes_that_are_drawn_surely_and_alike_often():
    pytest.importorskip("torchmetrics")
    sure = 50 * torch.eye(4).repeat(100, 1)
    found = spread.inception_score(sure)["is"]
    assert found.value == pytest.approx(4, abs=0.15)
    assert found.interval[1] - found.interval[0] < 0.2
    assert spread.inception_score(torch.zeros(400, 4))["is"].value == pytest.approx(1, abs=1e-6)
    one_class = torch.tensor([[50.0, 0, 0, 0]]).repeat(400, 1)
    assert spread.inception_score(one_class)["is"].value == pytest.approx(1, abs=1e-6)
    assert spread.inception_score(sure[:19]) == {}


# LPIPS, whose network is never downloaded.


def test_lpips_without_weights_names_the_file_and_its_folder_and_asks_no_network(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("downloads"))
    told = perceptual.missing()
    assert "nothing is downloaded; put alexnet-owt-" in told
    assert str(tmp_path / "checkpoints") in told


def test_lpips_finds_pictures_of_one_prompt_alike_or_not(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    models = pytest.importorskip("torchvision").models
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("downloads"))
    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    torch.save(models.alexnet(weights=None).state_dict(), perceptual.weights_file())
    assert perceptual.missing() == ""
    network = perceptual.Lpips()

    def diversity(pictures: list[Image.Image]) -> Measured:
        opened = [p.resize((64, 64), Image.Resampling.NEAREST).copy for p in pictures]
        return network.diversity(SHOTS, opened)["lpips_diversity"]

    rows = [i for i, shot in enumerate(SHOTS) if shot.kind == "class"]
    alike = list(BASE_PICTURES)
    for i in rows:
        alike[i] = painted(3 if SHOTS[i].prompt == "a" else 4)
    assert diversity(alike).value == pytest.approx(0, abs=1e-6)
    assert diversity(list(BASE_PICTURES)).value > 0.001
    assert diversity(list(BASE_PICTURES)).count == len(rows)


@pytest.mark.filterwarnings("ignore")  # of what their code calls its arguments
def test_lpips_is_that_of_its_authors_package(tmp_path, monkeypatch):
    """The same backbone, drawn at random; the weights on top of it lie in both packages."""
    pytest.importorskip("torchmetrics")
    models = pytest.importorskip("torchvision").models
    theirs = pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("downloads"))
    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    torch.save(models.alexnet(weights=None).state_dict(), perceptual.weights_file())
    original = theirs.LPIPS(net=perceptual.NETWORK, verbose=False).eval()
    prompt = next(shot.prompt for shot in SHOTS if shot.kind == "class")
    rows = [i for i, shot in enumerate(SHOTS) if shot.kind == "class" and shot.prompt == prompt]
    pictures = [p.resize((96, 64), Image.Resampling.BICUBIC) for p in BASE_PICTURES]
    figure = perceptual.Lpips().diversity(SHOTS, [p.copy for p in pictures])["lpips_diversity"]
    some = torch.stack([torch.from_numpy(np.array(pictures[i].convert("RGB")) / 255).float() for i in rows])
    some = some.movedim(-1, 1)
    with torch.no_grad():
        far = torch.stack([original(a.expand_as(some), some, normalize=True).flatten() for a in some])
    want = far.sum(1) / (len(rows) - 1)
    assert figure.values[: len(rows)] == pytest.approx(want.tolist(), rel=1e-4)
    assert want.min() > 0.001


def test_lpips_without_torchvision_names_it_with_the_pip_line(monkeypatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert perceptual.missing() == "LPIPS is left out: torchvision is missing; pip install torchvision"


# Questions.


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Yes", True),
        ("yes, there is a hat.", True),
        ("**No**.", False),
        ("No, but yes would be nicer", False),
        ("The answer is yes", True),
        ("There is no hat.", False),
        ("I see a hat", None),
        ("Maybe yes, maybe no", None),
        ("", None),
        ("Yesterday", None),
    ],
)
def test_an_answer_is_yes_no_or_unclear(said, answer):
    assert questions.is_yes(said) is answer


def test_without_questions_each_part_of_the_prompt_is_asked_about_without_the_trigger():
    asked = questions.questions("aawxbc figurine on the beach, holding a cup.", (), "aawxbc")
    assert asked == [
        'Does this picture show "figurine on the beach"?',
        'Does this picture show "holding a cup"?',
    ]
    assert questions.questions("aawxbc", (), "aawxbc") == []
    (shot, *_) = shots({"trigger": ["aawxbc"]}, 0, 1)
    assert questions.not_asked([shot], (), "aawxbc") == ["no question is about: aawxbc"]


def test_a_question_is_asked_of_prompts_with_its_word_only():
    asked = questions.parse(["hat | is there a hat?", "is it a figurine?"])
    assert questions.questions("x with a hat", asked) == ["is there a hat?", "is it a figurine?"]
    assert questions.questions("x in that chat", asked) == ["is it a figurine?"]
    for line in ("hat |", "| is there a hat?", " | "):
        with pytest.raises(ConfigError, match="has no question; write like 'is there a hat"):
            questions.parse([line])


def test_the_share_of_yes_and_what_is_unclear_are_counted_apart():
    found = questions.figures([["yes", "no"], ["yes", "well"], [], ["hm", "hm"]])
    assert found["answers"].values == [0.5, 0.5, 0.0]
    assert found["unclear"].values == [0.0, 0.5, 1.0]
    assert questions.figures([[], []]) == {}
