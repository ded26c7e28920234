"""The miniature world: what its pictures and captions promise to training and to tests."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.miniature import figurine, learn, subject, train, world
from workbench.miniature.evaluate import shares
from workbench.miniature.fitting import fit, write_whole
from workbench.miniature.judge import ANSWERS, Judge, example, opinions
from workbench.miniature.muon import Muon
from workbench.miniature.places import PLACES


def test_one_seed_gives_one_picture_and_one_caption() -> None:
    def made(seed: int) -> tuple[bytes, str]:
        random = Random(seed)
        scene = world.random_scene(random)
        return world.picture(scene, random).tobytes(), world.caption(scene, random)

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_every_named_thing_can_be_drawn() -> None:
    assert list(PLACES) == list(world.WHERE)
    for i, hat in enumerate(["", *figurine.HATS]):
        held = ["", *figurine.OBJECTS][i]
        face, body = [*figurine.FACES][i % 5], [*figurine.BODIES][i % 4]
        scene = world.Scene(place=[*PLACES][i % 5], colour="red", hat=hat, held=held, face=face, body=body)
        picture = world.picture(scene, Random(i))
        assert picture.size == (128, 128)
        assert picture.mode == "RGB"


def test_training_never_meets_what_is_held_out() -> None:
    random = Random(0)
    assert not any(world.training_scene(random).held_out for _ in range(500))
    held_out = world.held_out_captions(100)
    assert len(held_out) == len({text for _, text in held_out}) == 100
    for scene, text in held_out:
        assert scene.held_out
        assert scene.colour in text
        assert world.WHERE[scene.place] in text


def test_captions_say_only_what_is_there() -> None:
    random = Random(0)
    for _ in range(500):
        scene = world.random_scene(random)
        text = world.caption(scene, random)
        assert text == text.strip()
        for name, here in (("held", scene.held), ("colour", scene.colour), ("hat", scene.hat)):
            others = {"held": world.OBJECTS, "colour": world.COLOURS, "hat": world.HATS}[name]
            assert not [word for word in others if f" {word}" in text and word != here and word not in here]


def test_captions_of_prompts_are_among_the_wordings() -> None:
    scene = world.Scene(place="beach", colour="", hat="hat")
    assert "a figurine on the beach, wearing a hat" in {world.wording(scene, Random(i)) for i in range(40)}


def test_fewer_subject_pictures_are_the_first_of_more(tmp_path: Path) -> None:
    folder = subject.write(subject.subject_pictures(5), tmp_path / "subject")
    captions = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    assert captions == [f"{text}\n" for _, text in subject.subject_pictures(25)[:5]]
    assert all(text.startswith("aawxbc figurine ") for text in captions)
    assert len({place for place in world.WHERE.values() if any(place in text for text in captions)}) == 5
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.size == (128, 128)


def test_no_class_picture_shows_the_subject() -> None:
    texts = [text for _, text in subject.class_pictures(20)]
    assert not [text for text in texts if subject.NAME in text or "wizard" in text]


def test_judge_answers_every_question() -> None:
    random = Random(0)
    pictures, labels = zip(*(example(random) for _ in range(3)), strict=True)
    assert all(label[name] in choices for label in labels for name, choices in ANSWERS.items())
    stacked = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in pictures])
    assert [list(answer) for answer in opinions(Judge().eval(), stacked)] == [list(ANSWERS)] * 3


def test_shares_count_what_is_right() -> None:
    asked = [world.Scene(place="beach", colour="red"), world.Scene(place="snow", colour="blue", hat="cap")]
    right = {"place": "beach", "colour": "red", "hat": "", "held": "", "subject": "no"}
    found = shares(asked, [right, {**right, "colour": "blue", "hat": "crown"}])
    assert found["place"] == 0.5
    assert found["colour"] == found["hat"] == found["object"] == 1.0
    assert found["place and colour"] == found["all four"] == 0.5


def test_an_interrupted_fit_ends_like_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr("workbench.miniature.fitting.time.monotonic", lambda: float(next(ticks)))

    def trained(folder: Path, stop_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(8, 8)
        optimizers = [Muon([module.weight], lr=3e-2), torch.optim.AdamW([module.bias], lr=1e-2)]
        calls = iter(range(10_000))

        def loss_of(random: torch.Generator) -> torch.Tensor:
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            x = torch.randn(16, 8, generator=random)
            return (module(x) - x.flip(1)).square().mean()

        averaged = fit(module, loss_of, optimizers, folder=folder, name="it", minutes=4, log_every=10)
        return next(averaged.parameters()).detach()

    whole = trained(tmp_path / "whole")
    assert torch.dist(whole, torch.eye(8).flip(1)) < 0.2
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "twice", stop_at=150)
    assert torch.equal(whole, trained(tmp_path / "twice"))
    assert torch.equal(whole, trained(tmp_path / "whole", stop_at=0)), "a finished one only loads its result"


def test_the_learning_page_shows_the_measured_table(repo_root: Path) -> None:
    measured = json.loads(learn.OUT.read_text(encoding="utf-8"))
    page = (repo_root / "docs" / "learning.md").read_text(encoding="utf-8")
    assert learn.table(measured) in page
    for name in measured["rows"]:
        assert f"(learning/{name}.jpg)" in page
        assert (repo_root / "docs" / "learning" / f"{name}.jpg").exists()


def test_the_learning_table_was_measured_on_the_stored_weights(repo_root: Path) -> None:
    measured = json.loads(learn.OUT.read_text(encoding="utf-8"))
    assert measured["weights"] == learn.digest(repo_root / "workbench" / "miniature" / "weights")


def test_a_stage_that_was_interrupted_is_not_taken_for_done(tmp_path: Path) -> None:
    def interrupted(part: Path) -> None:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "latents.pt", interrupted)
    assert not (tmp_path / "latents.pt").exists()


def test_training_on_from_the_stored_weights_needs_more_minutes_than_they_took(
    tmp_path: Path, repo_root: Path
) -> None:
    log = (repo_root / "workbench" / "miniature" / "base.jsonl").read_text(encoding="utf-8")
    taken = round(json.loads(log.splitlines()[-1])["seconds"] / 60)
    with pytest.raises(SystemExit, match=f"--minutes is {taken} and the stored weights took {taken} of them"):
        train.begin_with_stored(tmp_path, minutes=taken)
    assert not list(tmp_path.iterdir())


def test_rows_of_the_learning_table_stay_only_with_equal_weights_and_settings(tmp_path: Path) -> None:
    out = tmp_path / "learning.json"
    settings = {"steps": 300, "weights": "a"}
    assert learn.begun(out, settings) == {}
    out.write_text(json.dumps({**settings, "rows": {"base": {}}}), encoding="utf-8")
    assert learn.begun(out, settings) == {"base": {}}
    assert learn.begun(out, {**settings, "weights": "b"}) == {}
