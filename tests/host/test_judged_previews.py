"""Train Preview by the rule of Evaluate LoRA: the miniature's CLIP looks at the sample pictures of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from in_graph_lora.trainer.host import paths
from in_graph_lora.trainer.host.training import train_on_loaded
from workbench.miniature.trial import SeerJudge

from .loaded import Loaded, write_pictures
from .test_judges import clip_vision
from .test_previews import Stop, of, same

pytestmark = [pytest.mark.usefixtures("output"), pytest.mark.slow]

STEPS, HELD_OUT, NAME = 4, 2, "aawxbc"
PROMPTS = (f"a {NAME} figurine", f"a {NAME} figurine, holding a cup", "a figurine", "a lake", "a house")
PREVIEW = PreviewConfig(prompts=PROMPTS[:3], unrelated_prompts=PROMPTS[3:], every=1, steps=2, cfg=1.0, seed=5)
KINDS = ("trigger", "trigger", "class", "unrelated", "unrelated")
WISHES = ValidationConfig(
    held_out=HELD_OUT, every=1000, keep_best=True, decides=BY_JUDGE, judge="seer miniature", max_drift=10
)


class Seer(SeerJudge):
    """Notes when it looks, and can fail."""

    def __init__(self) -> None:
        self.in_training: list[bool] = []
        self.left = 0
        self.fails: dict[int, Exception] = {}

    def see(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        self.in_training.append(mm.in_training)
        if error := self.fails.get(len(self.in_training)):
            raise error
        return super().see(pictures)

    def leave_device(self) -> None:
        self.left += 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64)] * 6)
    return replace(scan_folder(folder, resolution=64), trigger=NAME)


def run(loaded: Loaded, dataset: Any, judge: Any = None, *, stop_at: int = 0, new_run: bool = True, **more: Any):
    events: list[Any] = []
    config = {
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
            *(loaded.model, loaded.clip, loaded.vae, dataset, TrainConfig(name="judged", **config), emit),
            new_run=new_run,
            judge=judge if judge is not None else Seer(),
        )
    return result, events


def notices(events: list[Any]) -> list[str]:
    return [event.message for event in of(events, Notice)]


def kept_step(result: Any) -> int:
    """Of which checkpoint the run's LoRA is a copy."""
    own = result.path.read_bytes()
    (step,) = (int(p.stem[5:]) for p in result.run.glob("checkpoints/*.safetensors") if p.read_bytes() == own)
    return step


def by_the_rule(run: Path, dataset: Any, bounds: Bounds) -> tuple[int, dict[int, Any]]:
    """(the step that Evaluate LoRA's rule gives for these pictures, the figures of each step)."""
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


def test_the_kept_step_is_the_one_that_the_rule_of_evaluate_lora_gives(loaded, dataset):
    judge = Seer()
    result, events = run(loaded, dataset, judge)
    best, figures = by_the_rule(result.run, dataset, Bounds(drift=10))
    assert kept_step(result) == best
    judged = {event.step: event.figures for event in of(events, Judged)}
    assert list(judged) == [0, 1, 2, 3, 4]
    for step, own in figures.items():
        for key in ("subject", "leak", "drift", "copies", "pixel_copies"):
            assert judged[step][key] == pytest.approx(own[key].value, abs=1e-6), (step, key)
    assert len({round(own["subject"], 4) for own in judged.values()}) == STEPS + 1, "steps differ"
    said = [text for text in notices(events) if text.startswith("kept the LoRA of step")]
    assert bool(said) == (best != STEPS)
    assert TRAINED_ON not in notices(events)
    assert not any(judge.in_training)
    assert judge.left > STEPS, "before each leg, and before one step is tried out"
    step = LoadRun.execute(paths.runs().ids()[0], -1).result[3]
    assert step == best
    assert paths.runs().detail(paths.runs().ids()[0])["best"] == best

    # Another bound on the finished run: it is chosen anew, and nothing is trained.
    drifts = sorted(own["drift"].value for own in figures.values())
    bound = max(d for d in drifts if d < figures[best]["drift"].value) + 1e-4 if best_is_not_least(best, figures) else 0
    wishes = replace(WISHES, max_drift=bound)
    other, _ = by_the_rule(result.run, dataset, Bounds(drift=bound))
    again, events = run(loaded, dataset, new_run=False, validation=wishes)
    assert not of(events, StepDone)
    assert kept_step(again) == other
    _, events = run(loaded, dataset, new_run=False, validation=wishes)
    assert any("finished already" in text for text in notices(events))


def best_is_not_least(best: int, figures: dict[int, Any]) -> bool:
    return figures[best]["drift"].value > min(own["drift"].value for own in figures.values())
