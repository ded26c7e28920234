"""Errors inside a run: the model comes back as it was, the state on disk fits a step, the next run works."""

from __future__ import annotations

import threading
from pathlib import Path

import comfy.model_management as mm
import folder_paths
import pytest
import torch

from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    OptimizerConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.events import CheckpointSaved, Notice, StepDone
from in_graph_lora.trainer.host.training import train_on_loaded

from .loaded import Loaded, weight_hash, write_pictures

pytestmark = pytest.mark.usefixtures("output")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64)] * 2)


def run(loaded: Loaded, pictures: Path, on_event=lambda event: None, *, new_run: bool = False, **more):
    """(result, steps done, notices); `on_event` may raise."""
    sections = {
        "adapter": AdapterConfig(rank=2),
        "optimizer": OptimizerConfig(learning_rate=1e-3, ema_decay=0.9, warmup_steps=1),
        "data": DataConfig(resolution=64, batch_size=2),
        "save": SaveConfig(every=0),
    }
    config = TrainConfig(**{"name": "test", "steps": 5, **sections, **more})
    steps, notices = [], []

    def emit(event):
        if isinstance(event, StepDone):
            steps.append(event.step)
        if isinstance(event, Notice):
            notices.append(event.message)
        on_event(event)

    with torch.inference_mode():
        result = train_on_loaded(
            loaded.model, loaded.clip, loaded.vae, scan_folder(pictures, resolution=64), config, emit,
            new_run=new_run,
        )  # fmt: skip
    return result, steps, notices


@pytest.fixture(scope="module")
def straight(loaded, pictures, tmp_path_factory):
    """Never disturbed, and the hashes of the models before it."""
    before = hashes(loaded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(tmp_path_factory.mktemp("straight")))
        result, _, _ = run(loaded, pictures)
    return result, before


def hashes(loaded: Loaded) -> list[str]:
    modules = (loaded.model.model, loaded.clip.cond_stage_model, loaded.vae.first_stage_model)
    return [weight_hash(module) for module in modules]


def same(a, b) -> bool:
    equal = a.lora.keys() == b.lora.keys() and all(torch.equal(a.lora[k], b.lora[k]) for k in a.lora)
    return equal and a.losses == b.losses


@pytest.mark.parametrize("every", [0, 1])
def test_an_error_within_the_optimizers_step(loaded, pictures, straight, monkeypatch, every):
    """It comes when the weights are changed already: they fit no step, and must not be saved as one."""
    whole, before = straight
    original, calls = torch.optim.AdamW.step, []

    def step(self, *args, **kwargs):
        calls.append(1)
        out = original(self, *args, **kwargs)
        if len(calls) == 3:
            raise RuntimeError("the optimizer broke")
        return out

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(RuntimeError, match="the optimizer broke"):
        run(loaded, pictures, save=SaveConfig(every=every))
    assert hashes(loaded) == before
    assert not mm.in_training
    again, steps, notices = run(loaded, pictures)
    assert steps == ([3, 4, 5] if every else [1, 2, 3, 4, 5])
    assert any(f"going on from step {2 * every}" in n for n in notices)
    assert same(again, whole)


def test_an_error_in_a_callback(loaded, pictures, straight):
    whole, before = straight

    def callback(event):
        if isinstance(event, StepDone) and event.step == 3:
            raise ValueError("the page went away")

    with pytest.raises(ValueError, match="the page went away"):
        run(loaded, pictures, callback)
    assert hashes(loaded) == before
    again, steps, _ = run(loaded, pictures)
    assert steps == [4, 5]
    assert same(again, whole)


def test_when_saving_fails_too_the_first_error_is_told_and_the_next_run_goes_on(
    loaded, pictures, straight, output
):
    whole, before = straight

    def callback(event):
        if isinstance(event, StepDone) and event.step == 3:
            (checkpoints,) = output.rglob("checkpoints")
            checkpoints.rename(checkpoints.with_name("away"))
            checkpoints.write_text("a file in the place of the folder")
            raise ValueError("the page went away")

    told = []
    with pytest.raises(ValueError, match="the page went away"):
        run(loaded, pictures, lambda e: (told.append(e), callback(e)), save=SaveConfig(every=2))
    (notice,) = [e.message for e in told if isinstance(e, Notice)]
    assert "step 3 could not be saved" in notice
    assert hashes(loaded) == before
    (blocked,) = output.rglob("checkpoints")
    blocked.unlink()
    blocked.with_name("away").rename(blocked)
    again, steps, _ = run(loaded, pictures)
    assert steps == [3, 4, 5]
    assert same(again, whole)


@pytest.mark.parametrize(
    ("evict", "thread"),
    [(mm.unload_all_models, False), (lambda: mm.free_memory(1e30, torch.device("cpu")), True)],
    ids=["unload_all_models", "free_memory-in-another-thread"],
)
def test_a_model_that_comfyui_unloads_between_steps(loaded, pictures, straight, monkeypatch, evict, thread):
    """On a CPU unloading moves nothing, so the device to unload to is one that loses what is moved there."""
    whole, before = straight

    def between(event):
        if isinstance(event, StepDone) and event.step in (2, 4):
            with monkeypatch.context() as patch:
                patch.setattr(loaded.model, "offload_device", torch.device("meta"))
                if thread:
                    other = threading.Thread(target=evict)
                    other.start()
                    other.join()
                else:
                    evict()

    result, steps, _ = run(loaded, pictures, between, new_run=True)
    assert steps == [1, 2, 3, 4, 5]
    assert same(result, whole)
    assert hashes(loaded) == before
    assert [entry.model for entry in mm.current_loaded_models].count(loaded.model) == 1
    mm.unload_all_models()
    again, _, _ = run(loaded, pictures, new_run=True)
    assert same(again, whole)


def test_other_models_loaded_between_steps(loaded, pictures, straight):
    whole, before = straight

    def between(event):
        if isinstance(event, StepDone):
            with torch.inference_mode():
                mm.load_models_gpu([loaded.vae.patcher, loaded.clip.patcher, loaded.model])

    result, _, _ = run(loaded, pictures, between)
    assert same(result, whole)
    assert hashes(loaded) == before
    assert [entry.model for entry in mm.current_loaded_models].count(loaded.model) == 1


def test_a_checkpoint_that_is_the_best_step_too_stays_whole(loaded, pictures, output):
    """Both write the step's LoRA file, and the index vouches for its bytes, which carry a date."""
    pictures_of_two = {"data": DataConfig(resolution=64, batch_size=1)}
    measured = ValidationConfig(held_out=1, every=1, keep_best=True)

    def callback(event):
        if isinstance(event, StepDone) and event.step == 2:
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        run(loaded, pictures, callback, save=SaveConfig(every=1), validation=measured, **pictures_of_two)
    (index,) = output.rglob("step_000002.json")
    index.unlink()
    _, steps, notices = run(loaded, pictures, validation=measured, **pictures_of_two)
    assert not any("damaged" in n for n in notices)
    assert steps == [2, 3, 4, 5]


def test_tensorboards_folder_cannot_be_written(loaded, pictures, straight, output):
    pytest.importorskip("tensorboard")
    whole, _ = straight

    def callback(event):
        if isinstance(event, CheckpointSaved):
            (folder,) = output.rglob("tensorboard")
            folder.rename(folder.with_name("away"))
            folder.write_text("a file in the place of the folder")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        run(loaded, pictures, callback, save=SaveConfig(every=2))
    result, _, notices = run(loaded, pictures)
    assert any("TensorBoard's log cannot be written" in n for n in notices)
    assert same(result, whole)
