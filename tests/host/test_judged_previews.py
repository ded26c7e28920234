"""Train Preview by the rule of Evaluate LoRA: the miniature's CLIP looks at the sample pictures of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.model_management as mm
import pytest
import torch
from PIL import Image

from in_graph_lora.nodes.load_run import LoadRun
from in_graph_lora.nodes.train_preview import TrainPreview
from in_graph_lora.trainer.config import (
    BY_JUDGE,
    AdapterConfig,
    DataConfig,
    OptimizerConfig,
    PreviewConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, ModelError
from in_graph_lora.trainer.events import Judged, Notice, StepDone
from in_graph_lora.trainer.evidence.choice import Bounds, choose
from in_graph_lora.trainer.evidence.known import TRAINED_ON, gather
from in_graph_lora.trainer.evidence.measure import measure
from in_graph_lora.trainer.evidence.shots import Candidate, Shot
from in_graph_lora.trainer.evidence.sight import look
from in_graph_lora.trainer.host import paths, sample
from in_graph_lora.trainer.host.training import train_on_loaded
from workbench.miniature.looking import SeerJudge

from .loaded import Loaded, output_folder, weight_hash, write_pictures
from .test_judges import clip_vision
from .test_previews import Stop, of, same

pytestmark = pytest.mark.slow

STEPS, HELD_OUT, NAME = 4, 2, "aawxbc"
PROMPTS = (f"a {NAME} figurine", f"a {NAME} figurine, holding a cup", "a figurine", "a lake", "a house")
PREVIEW = PreviewConfig(prompts=PROMPTS[:3], unrelated_prompts=PROMPTS[3:], every=1, steps=1, cfg=1.0, seed=5)
KINDS = ("trigger", "trigger", "class", "unrelated", "unrelated")
WISHES = ValidationConfig(
    held_out=HELD_OUT, every=1000, keep_best=True, decides=BY_JUDGE, judge="seer miniature", max_drift=10
)


class Seer(SeerJudge):
    """Notes when it looks, and fails where it is told to."""

    def __init__(self) -> None:
        self.in_training: list[bool] = []
        self.left = 0
        self.broken: dict[int, Exception | float] = {}
        """Number of the look → what is raised, or what its features are."""

    def see(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        self.in_training.append(mm.in_training)
        broken = self.broken.get(len(self.in_training))
        if isinstance(broken, Exception):
            raise broken
        seen = super().see(pictures)
        return seen if broken is None else torch.full_like(seen, broken)

    def leave_device(self) -> None:
        self.left += 1


@pytest.fixture(autouse=True, scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    encode, encoded = sample.encode_prompt, {}

    def once(clip: Any, text: str, *args: Any, **more: Any) -> list[Any]:
        """The LoRAs here leave the text encoder alone, which is the slowest part of a picture."""
        if text not in encoded:
            encoded[text] = encode(clip, text, *args, **more)
        return encoded[text]

    with output_folder(tmp_path_factory.mktemp("output")), patch.object(sample, "encode_prompt", once):
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64)] * 6)
    return replace(scan_folder(folder, resolution=64), trigger=NAME)


def run(
    loaded: Loaded, dataset: Any, judge: Any = None, *, stop_at: int = 0, new_run: bool = True, **more: Any
) -> tuple[Any, list[Any]]:
    events: list[Any] = []
    config: dict[str, Any] = {
        "name": "judged",
        "steps": STEPS,
        "adapter": AdapterConfig(rank=4),
        "optimizer": OptimizerConfig(learning_rate=2e-2, schedule="constant", warmup_steps=0),
        "data": DataConfig(resolution=64),
        "save": SaveConfig(every=0),
        "preview": PREVIEW,
        "validation": WISHES,
        **more,
    }

    def emit(event: Any) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == stop_at:
            raise Stop

    with torch.inference_mode():
        result = train_on_loaded(
            *(loaded.model, loaded.clip, loaded.vae, dataset, TrainConfig(**config), emit),
            new_run=new_run,
            judge=judge if judge is not None else Seer(),
        )
    return result, events


def notices(events: list[Any]) -> list[str]:
    return [event.message for event in of(events, Notice)]


def judged(events: list[Any]) -> dict[int, Any]:
    return {event.step: event.figures for event in of(events, Judged)}


def kept_step(result: Any) -> int:
    """Of which checkpoint the run's LoRA is a copy."""
    own = result.path.read_bytes()
    (step,) = (int(p.stem[5:]) for p in result.run.glob("checkpoints/*.safetensors") if p.read_bytes() == own)
    return step


def by_the_rule(run: Path, dataset: Any, bounds: Bounds) -> tuple[int, dict[int, Any]]:
    """(the step that Evaluate LoRA's rule gives for these pictures, the figures of each step)"""
    shots = [Shot(kind=k, prompt=p, seed=5 + i) for i, (k, p) in enumerate(zip(KINDS, PROMPTS, strict=True))]
    judge = SeerJudge()

    def sight(step: int) -> Any:
        files = [run / "previews" / f"step_{step:06}_{i + 1}.png" for i in range(len(shots))]
        return look(judge, [lambda f=f: Image.open(f).convert("RGB") for f in files], "")

    known, _ = gather(judge, shots, dataset.hold_out(HELD_OUT), (), (64, 64))
    found = {s: measure(shots, sight(0), sight(s), known).figures for s in range(1, STEPS + 1)}
    columns = [(Candidate(label=f"{s}", step=s, strength=1.0), figures) for s, figures in found.items()]
    best = choose(columns, bounds).column
    assert best is not None
    return best + 1, found


@pytest.fixture(scope="module")
def straight(loaded: Loaded, dataset: Any) -> tuple[Any, list[Any], Seer]:
    judge = Seer()
    return *run(loaded, dataset, judge), judge


def test_the_kept_step_is_the_one_that_the_rule_of_evaluate_lora_gives(straight, dataset):
    result, events, judge = straight
    best, figures = by_the_rule(result.run, dataset, Bounds(drift=10))
    assert kept_step(result) == best != STEPS, "more than the last step is chosen from"
    found = judged(events)
    assert list(found) == [0, 1, 2, 3, 4]
    for step, own in figures.items():
        for key in ("subject", "leak", "drift", "copies", "pixel_copies"):
            assert found[step][key] == pytest.approx(own[key].value, abs=1e-6), (step, key)
    assert f"kept the LoRA of step {best}, which the judge finds best: " in " ".join(notices(events))
    assert TRAINED_ON not in notices(events)
    assert len(judge.in_training) == 1 + 2 + STEPS, "the base, references and training pictures, each step"
    assert not any(judge.in_training)
    assert judge.left >= STEPS, "before each leg it leaves the device"
    name = paths.runs().ids()[0]
    _, _, _, step, _ = LoadRun.execute(name, -1).result
    assert step == best == paths.runs().detail(name)["best"]


def test_a_run_that_was_stopped_comes_to_the_same_choice(loaded, straight, dataset):
    whole, events, _ = straight
    with pytest.raises(Stop):
        run(loaded, dataset, stop_at=3, name="stopped")
    judge = Seer()
    resumed, more = run(loaded, dataset, judge, new_run=False, name="stopped")
    assert [event.step for event in of(more, StepDone)] == [4]
    assert same(whole.lora, resumed.lora)
    assert kept_step(resumed) == kept_step(whole)
    assert judged(more) == {step: own for step, own in judged(events).items() if step > 2}, "bit for bit"
    assert len(judge.in_training) == 1 + 2 + 2, "the base, references and training pictures, steps 3 and 4"


def test_a_judge_that_stops_working_does_not_end_a_run_that_goes_on(loaded, dataset):
    with pytest.raises(Stop):
        run(loaded, dataset, stop_at=3, name="later")
    judge = Seer()
    judge.broken = dict.fromkeys(range(1, 99), float("nan"))
    resumed, more = run(loaded, dataset, judge, new_run=False, name="later")
    assert [event.step for event in of(more, StepDone)] == [4]
    assert sum("could not be judged" in text for text in notices(more)) == 2, "steps 3 and 4, once each"
    assert kept_step(resumed) in (1, 2)


def test_another_bound_chooses_anew_and_trains_nothing(loaded, straight, dataset):
    result, _, _ = straight
    best, figures = by_the_rule(result.run, dataset, Bounds(drift=10))
    bound = figures[best]["drift"].value - 0.01
    other, _ = by_the_rule(result.run, dataset, Bounds(drift=bound))
    wishes = replace(WISHES, max_drift=bound)
    again, events = run(loaded, dataset, new_run=False, validation=wishes)
    assert again.run == result.run
    assert not of(events, StepDone)
    assert kept_step(again) == other != best
    _, events = run(loaded, dataset, new_run=False, validation=wishes)
    assert any("finished already" in text for text in notices(events))
    unwatched = ValidationConfig(held_out=HELD_OUT, every=1000)
    _, events = run(loaded, dataset, new_run=False, validation=unwatched, preview=PreviewConfig())
    assert not of(events, StepDone), "what is looked at decides no weight"


def test_without_a_better_step_the_run_ends_and_the_first_is_kept(loaded, dataset):
    still = OptimizerConfig(learning_rate=0.0)
    wishes = replace(WISHES, held_out=0, patience=2)
    before = weight_hash(loaded.model.model)
    result, events = run(loaded, dataset, optimizer=still, validation=wishes, name="still")
    assert [event.step for event in of(events, StepDone)] == [1, 2, 3]
    assert "stopped early at step 3: 2 previews without a better step by the judge" in notices(events)
    assert "kept the LoRA of step 1, which the judge finds best" in " ".join(notices(events))
    assert result.lora
    assert TRAINED_ON in notices(events), "nothing is held out"
    assert weight_hash(loaded.model.model) == before


def test_a_judge_that_fails_once_is_told_and_one_that_never_works_is_refused(loaded, straight, dataset):
    judge = Seer()
    judge.broken = {5: RuntimeError("no memory for the judge"), 6: float("nan")}  # step 2, and once more
    result, events = run(loaded, dataset, judge, name="fails")
    assert list(judged(events)) == [0, 1, 3, 2, 4], "the next look tries again"
    assert judged(events) == judged(straight[1])
    told = [text for text in notices(events) if "could not be judged" in text]
    assert told == ["step 2 could not be judged (no memory for the judge); the training goes on"]
    assert same(result.lora, straight[0].lora)
    judge.broken = dict.fromkeys(range(len(judge.in_training) + 1, 99), float("nan"))
    with pytest.raises(ModelError, match="the judge seer gives NaN or infinite features of the pictures of"):
        run(loaded, dataset, judge, name="never")


def test_what_cannot_be_judged_is_refused_before_anything_is_drawn(loaded, dataset):
    with pytest.raises(ConfigError, match="decides is judge but there is none; connect clip_vision or name"):
        ValidationConfig(decides=BY_JUDGE)
    with pytest.raises(
        ConfigError, match="there is a judge but no pictures for it; write a line into prompts"
    ):
        TrainConfig(validation=WISHES)
    with pytest.raises(ConfigError, match="unrelated_prompts is written but prompts is empty"):
        PreviewConfig(unrelated_prompts=("a lake",))
    with pytest.raises(ConfigError, match="no line of prompts has the trigger 'aawxbc', so the judge would"):
        run(loaded, dataset, preview=PreviewConfig(prompts=("a figurine",)))
    with pytest.raises(ConfigError, match="judged by seer miniature, and no judge is there; connect it"):
        train_on_loaded(
            *(loaded.model, loaded.clip, loaded.vae, dataset),
            TrainConfig(validation=WISHES, preview=PREVIEW),
            lambda event: None,
        )


def test_the_node_hands_over_the_judge_and_names_it():
    options = TrainPreview.execute(
        prompts=PROMPTS[0], every=1, held_out=0, measure_every=1, keep_best=True, patience=0,
        sampling_steps=1, checkpoint_every=0, keep_states=1, clip_vision=clip_vision("dinov3"),
        decides=BY_JUDGE, unrelated_prompts="a lake\n\na house",
    ).args[0]  # fmt: skip
    assert options.preview.unrelated_prompts == ("a lake", "a house")
    assert options.validation.judge == f"dinov3 {options.judge.digest}"
    assert options.judge.see([Image.new("RGB", (64, 64))]).shape == (1, 32)
