"""Sample pictures and the held-out loss: they show what a run does, and change nothing in it."""

from __future__ import annotations

import importlib.util
import math
import weakref
from dataclasses import replace
from pathlib import Path

import comfy.model_management as mm
import folder_paths
import pytest
import torch
from comfy.model_base import BaseModel
from peft.tuners.lora.layer import LoraLayer
from PIL import Image

from in_graph_lora.nodes.load_run import LoadRun
from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    OptimizerConfig,
    PreviewConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, DatasetError, StorageError
from in_graph_lora.trainer.events import Notice, PreviewSaved, StepDone, Validated
from in_graph_lora.trainer.host import paths, sample
from in_graph_lora.trainer.host.model import HostDenoiser
from in_graph_lora.trainer.host.sample import SampleSettings, encode_prompt, sample_image
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.leg import Leg
from in_graph_lora.trainer.objective import Objective
from in_graph_lora.trainer.pictures.comparison import to_pil
from in_graph_lora.trainer.updater import Updater

from .loaded import Loaded, weight_hash, write_pictures

pytestmark = [pytest.mark.usefixtures("output"), pytest.mark.slow]

PREVIEW = PreviewConfig(prompts=("a cat", "a dog"), every=2, steps=2, cfg=2.0, seed=7)
VALIDATION = ValidationConfig(held_out=1, every=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64)] * 4)


class Stop(BaseException):
    """Like ComfyUI's interrupt."""


def run(loaded: Loaded, pictures: Path, *, stop_at: int = 0, new_run: bool = True, **more):
    events: list = []
    sections = {
        "adapter": AdapterConfig(rank=2, dropout=0.2),
        "optimizer": OptimizerConfig(learning_rate=1e-3, ema_decay=0.9, warmup_steps=1),
        "data": DataConfig(resolution=64, batch_size=2),
        "save": SaveConfig(every=0),
    }
    config = TrainConfig(**{"name": "test", "steps": 5, **sections, **more})

    def emit(event):
        events.append(event)
        if isinstance(event, StepDone) and stop_at and event.step == stop_at:
            raise Stop

    dataset = scan_folder(pictures, resolution=64)
    with torch.inference_mode():
        result = train_on_loaded(
            loaded.model, loaded.clip, loaded.vae, dataset, config, emit, new_run=new_run
        )
    return result, events


def of(events: list, kind: type) -> list:
    return [e for e in events if isinstance(e, kind)]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def storages(module: torch.nn.Module) -> dict[str, int]:
    """ComfyUI makes new parameter objects when it takes a LoRA out again, over the same storage."""
    return {name: p.data_ptr() for name, p in module.named_parameters()}


def test_the_weights_are_the_same_with_previews_and_validation_on_and_off(loaded, pictures):
    before = weight_hash(loaded.model.model), storages(loaded.model.model)
    measuring = replace(VALIDATION, every=1)
    held_out, _ = run(loaded, pictures, validation=replace(VALIDATION, every=1000))
    watched, events = run(loaded, pictures, preview=PREVIEW, validation=measuring)
    assert same(held_out.lora, watched.lora)
    assert held_out.losses == watched.losses
    assert [e.step for e in of(events, PreviewSaved)] == [0, 2, 4, 5]
    assert [e.step for e in of(events, Validated)] == [0, 1, 2, 3, 4, 5]
    assert (weight_hash(loaded.model.model), storages(loaded.model.model)) == before
    plain, _ = run(loaded, pictures)
    drawn, _ = run(loaded, pictures, preview=replace(PREVIEW, every=1))
    assert same(plain.lora, drawn.lora)
    assert not same(plain.lora, held_out.lora), "a picture that is held out must be missing from the training"


def test_the_same_with_a_trained_text_encoder(loaded, pictures):
    optimizer = OptimizerConfig(learning_rate=1e-3, text_encoder_lr=1e-3)
    plain, _ = run(loaded, pictures, steps=3, optimizer=optimizer)
    drawn, events = run(loaded, pictures, steps=3, optimizer=optimizer, preview=PREVIEW)
    assert same(plain.lora, drawn.lora)
    assert len(of(events, PreviewSaved)) == 3


def test_previews_are_the_pictures_of_comfyuis_own_sampler(loaded, pictures):
    result, events = run(loaded, pictures, preview=PREVIEW)
    first = of(events, PreviewSaved)[0]
    settings = SampleSettings(steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", width=64, height=64)
    with torch.inference_mode():
        positive, negative = encode_prompt(loaded.clip, "a dog"), encode_prompt(loaded.clip, "")
        stock = sample_image(loaded.model, loaded.vae, positive, negative, 8, settings)
    last = of(events, PreviewSaved)[-1]
    with Image.open(first.paths[1]) as before, Image.open(last.paths[1]) as after:
        assert to_pil(stock).tobytes() == before.tobytes() != after.tobytes()
        assert after.text["prompt"] == "a dog"
    with Image.open(result.previews) as overview:
        assert overview.width > 4 * 64
        assert overview.height > 2 * 64


def test_a_stopped_run_goes_on_with_its_previews_and_its_measurements(loaded, pictures):
    straight, _ = run(loaded, pictures, preview=PREVIEW, validation=VALIDATION)
    with pytest.raises(Stop):
        run(loaded, pictures, preview=PREVIEW, validation=VALIDATION, stop_at=3)
    resumed, events = run(loaded, pictures, preview=PREVIEW, validation=VALIDATION, new_run=False)
    assert [e.step for e in of(events, PreviewSaved)] == [4, 5]
    assert [e.step for e in of(events, Validated)] == [4, 5]
    assert same(straight.lora, resumed.lora)


def test_a_changed_preview_interval_goes_on(loaded, pictures):
    with pytest.raises(Stop):
        run(loaded, pictures, preview=PREVIEW, stop_at=3)
    _, events = run(loaded, pictures, preview=replace(PREVIEW, every=1, prompts=("a cow",)), new_run=False)
    assert [e.step for e in of(events, StepDone)] == [4, 5]
    assert [e.step for e in of(events, PreviewSaved)] == [3, 4, 5]


@pytest.mark.parametrize("where", ["the sampler", "the decoder"])
def test_a_preview_that_fails_is_told_and_the_run_goes_on(loaded, pictures, monkeypatch, where):
    plain, _ = run(loaded, pictures)
    before = weight_hash(loaded.model.model), storages(loaded.model.model)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory for a picture")

    if where == "the decoder":
        monkeypatch.setattr(loaded.vae, "decode", fail)
    else:
        monkeypatch.setattr(type(loaded.model.model), "_apply_model", failing_in_the_sampler(fail))
    result, events = run(loaded, pictures, preview=PREVIEW)
    assert (weight_hash(loaded.model.model), storages(loaded.model.model)) == before
    notices = [e.message for e in of(events, Notice)]
    assert sum("preview at step" in n and "no memory for a picture" in n for n in notices) == 4
    assert same(plain.lora, result.lora)
    assert result.previews is None


def failing_in_the_sampler(fail):
    apply = BaseModel._apply_model
    calls = 0

    def in_the_second_step(*args, **kwargs):
        nonlocal calls
        calls += not mm.in_training
        return fail() if not mm.in_training and calls % 2 == 0 else apply(*args, **kwargs)

    return in_the_second_step


def test_nothing_of_a_leg_is_left_when_its_preview_is_drawn(loaded, pictures, monkeypatch):
    alive: list[weakref.ref] = []
    counts: list[tuple[int, int]] = []

    def remembered(cls):
        def init(self, *args, __init__=cls.__init__, **kwargs):
            alive.append(weakref.ref(self))
            __init__(self, *args, **kwargs)

        monkeypatch.setattr(cls, "__init__", init)

    for cls in (Leg, Updater, Objective, HostDenoiser, torch.optim.AdamW, LoraLayer):
        remembered(cls)
    drawing = sample.sample_image

    def counted(*args, **kwargs):
        counts.append((sum(r() is not None for r in alive), len(alive)))
        return drawing(*args, **kwargs)

    monkeypatch.setattr(sample, "sample_image", counted)
    once = replace(PREVIEW, prompts=("a cat",), steps=1)
    run(loaded, pictures, preview=once, steps=3, adapter=AdapterConfig(rank=2, kind="dora"))
    assert [left for left, _ in counts] == [0, 0, 0]
    assert counts[-1][1] > 2 * 6, "layers with adapters among them"


def test_an_interrupt_while_a_preview_is_drawn_leaves_the_work_on_disk(loaded, pictures, monkeypatch):
    straight, _ = run(loaded, pictures, preview=PREVIEW)
    drawing = sample.sample_image

    def interrupted(*args, **kwargs):
        if len(list(folder_of_newest().glob("checkpoints/*.json"))):
            raise Stop
        return drawing(*args, **kwargs)

    monkeypatch.setattr(sample, "sample_image", interrupted)
    with pytest.raises(Stop):
        run(loaded, pictures, preview=PREVIEW)
    monkeypatch.undo()
    monkeypatch.setattr(folder_paths, "output_directory", str(straight.path.parents[1]))
    resumed, events = run(loaded, pictures, preview=PREVIEW, new_run=False)
    assert [e.step for e in of(events, StepDone)] == [3, 4, 5]
    assert same(straight.lora, resumed.lora)


def folder_of_newest() -> Path:
    return paths.output_directory() / "in-graph-lora" / paths.runs().ids()[0]


def test_the_held_out_loss_is_fixed_and_falls(loaded, tmp_path):
    """Two pictures that are alike: learning the one helps with the other."""
    folder = write_pictures(tmp_path / "twins", [(64, 64)])
    with Image.open(folder / "0.png") as opened:
        picture = opened.copy()
    for i in range(1, 4):
        picture.point(lambda v, i=i: min(255, v + i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a photo of aawxbc figurine 0")
    wishes = {"validation": ValidationConfig(held_out=1, every=10), "steps": 40}
    plain = {**wishes, "optimizer": OptimizerConfig(learning_rate=2e-3), "adapter": AdapterConfig(rank=4)}
    _, events = run(loaded, folder, **plain)
    losses = [e.loss for e in of(events, Validated)]
    assert losses == sorted(losses, reverse=True), "fixed noise and levels: no sampling noise in the curve"
    _, events = run(loaded, folder, **{**plain, "steps": 1, "seed": 0})
    assert of(events, Validated)[0].loss == losses[0]


def test_the_best_step_is_kept_and_a_run_that_does_not_get_better_ends(loaded, pictures):
    wild = OptimizerConfig(learning_rate=0.5, schedule="constant", warmup_steps=0)
    wishes = ValidationConfig(held_out=1, every=1, keep_best=True, patience=3)
    result, events = run(loaded, pictures, steps=20, optimizer=wild, validation=wishes)
    measured = {e.step: e.loss if math.isfinite(e.loss) else math.inf for e in of(events, Validated)}
    assert max(measured) < 20
    best = min((s for s in measured if s), key=lambda s: (measured[s], s))
    (kept,) = result.run.rglob(f"step_{best:06d}.safetensors")
    assert kept.read_bytes() == result.path.read_bytes()
    assert any("stopped early" in e.message for e in of(events, Notice))
    again, events = run(loaded, pictures, steps=20, optimizer=wild, validation=wishes, new_run=False)
    assert not of(events, StepDone)
    assert again.path == result.path
    patient = replace(wishes, patience=0)
    more = {"steps": max(measured) + 1, "optimizer": wild, "validation": patient}
    _, events = run(loaded, pictures, new_run=False, **more)
    assert [e.step for e in of(events, StepDone)] == [max(measured) + 1]


def test_holding_out_everything_is_refused(loaded, pictures):
    with pytest.raises(DatasetError, match="held_out is 4"):
        run(loaded, pictures, validation=ValidationConfig(held_out=4))


def test_load_run_gives_any_checkpoint_of_a_run(loaded, pictures):
    wishes = ValidationConfig(held_out=1, every=1)
    result, events = run(loaded, pictures, save=SaveConfig(every=2), validation=wishes, preview=PREVIEW)
    name = paths.runs().ids()[0]
    lora, loss, metadata, step, path = LoadRun.execute(name, 0).result
    assert path == str(result.run / "checkpoints" / "step_000005.safetensors")
    assert same(lora, result.lora)
    assert step == 5
    assert loss == {"loss": result.losses}
    assert '"ss_steps": "5"' in metadata
    earlier, loss, _, step, _ = LoadRun.execute(name, 2).result
    assert step == 2
    assert len(loss["loss"]) == 2
    assert not same(earlier, lora)
    losses = {e.step: e.loss for e in of(events, Validated) if e.step in (2, 4, 5)}
    assert LoadRun.execute(name, -1).result[3] == min(losses, key=lambda s: losses[s])
    with pytest.raises(ConfigError, match="choose one of 2, 4, 5"):
        LoadRun.execute(name, 3)
    with pytest.raises(StorageError, match="refresh"):
        LoadRun.execute("../escape", 0)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_the_same_figures(loaded, pictures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Stop):
        run(loaded, pictures, stop_at=3, validation=VALIDATION)
    result, _ = run(loaded, pictures, new_run=False, validation=VALIDATION, preview=PREVIEW)
    board = EventAccumulator(str(result.run / "tensorboard")).Reload()
    scalars = [(s.step, s.value) for s in board.Scalars("train/loss")]
    assert [step for step, _ in scalars] == [1, 2, 3, 4, 5]
    assert [value for _, value in scalars] == pytest.approx(result.losses)
    assert [s.step for s in board.Scalars("validation/loss")] == [0, 2, 4, 5]
    assert {"preview/1", "preview/2"} <= set(board.Tags()["images"])
