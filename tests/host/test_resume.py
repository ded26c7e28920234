"""A run is never lost: stopped and resumed equals straight, bit for bit; damage is survived."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch

from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PriorConfig,
    SaveConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.events import Notice, StepDone
from in_graph_lora.trainer.host import paths
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.optim import RATE_FOUND, check_optimizer
from in_graph_lora.trainer.runs import finding

from .loaded import Loaded, write_pictures

pytestmark = pytest.mark.slow

EVERYTHING = {
    "adapter": AdapterConfig(rank=2, dropout=0.2),
    "objective": ObjectiveConfig(caption_dropout=0.3, noise_offset=0.05, input_perturbation=0.1),
    "optimizer": OptimizerConfig(learning_rate=1e-3, accumulation=2, ema_decay=0.9, warmup_steps=1),
    "data": DataConfig(resolution=64, batch_size=2),
    "save": SaveConfig(every=2, keep=2),
}


class Stop(BaseException):
    """Like ComfyUI's interrupt."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64), (128, 32), (64, 64)])


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that makes a fresh output folder the current one."""

    def use(name: str) -> Path:
        folder = tmp_path / name
        monkeypatch.setattr(folder_paths, "output_directory", str(folder))
        paths.lora_directory().mkdir(parents=True, exist_ok=True)
        return folder

    use("first")
    return use


def run(loaded: Loaded, pictures: Path, *, stop_at: int = 0, kill_at: int = 0, notices=None, **more):
    """Train; `stop_at` presses Cancel after that step, `kill_at` "stop and keep"."""
    steps = []
    new_run = more.pop("new_run", False)
    config = TrainConfig(**{"name": "test", "steps": 5, **EVERYTHING, **more})

    def emit(event):
        if isinstance(event, StepDone):
            steps.append(event.step)
            if stop_at and event.step == stop_at:
                raise Stop
        if isinstance(event, Notice) and notices is not None:
            notices.append(event.message)

    with torch.inference_mode():
        result = train_on_loaded(
            loaded.model, loaded.clip, loaded.vae, scan_folder(pictures, resolution=64), config, emit,
            new_run=new_run, stop_requested=lambda: bool(kill_at and steps) and steps[-1] >= kill_at,
        )  # fmt: skip
    return result, steps


def state_of(folder: Path, step: int) -> dict[str, bytes]:
    """Everything a run left at a step: every tensor, number and step event but the clock's."""
    (run_folder,) = [p.parent for p in folder.rglob("run.json")]
    checkpoints = run_folder / "checkpoints"
    events = [json.loads(x) for x in (run_folder / "events.jsonl").read_text().splitlines()]
    steps = [{k: v for k, v in e.items() if k != "seconds"} for e in events if e["event"] == "StepDone"]
    numbers = json.loads((checkpoints / f"step_{step:06d}.json").read_text())["numbers"]
    return {
        "state": (checkpoints / f"step_{step:06d}.state.safetensors").read_bytes(),
        "numbers": json.dumps(numbers, sort_keys=True).encode(),
        "events": json.dumps(steps).encode(),
    }


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimizer": replace(EVERYTHING["optimizer"], text_encoder_lr=5e-4, accumulation=1)},
        {"prior": PriorConfig(method="class_images", class_prompt="a figurine", class_images=2, steps=1)},
        {"adapter": AdapterConfig(kind="full", targets="kv", hold_first_token=True)},
    ],
    ids=["ema-accumulation-dropout-buckets", "text-encoder", "prior-images", "custom-diffusion"],
)
def test_stopped_after_3_and_resumed_equals_5_straight(loaded, pictures, output, more):
    straight = output("straight")
    whole, _ = run(loaded, pictures, **more)
    stopped = output("stopped")
    with pytest.raises(Stop):
        run(loaded, pictures, stop_at=3, **more)
    notices: list[str] = []
    resumed, steps = run(loaded, pictures, notices=notices, **more)
    assert steps == [4, 5]
    assert any("going on from step 3" in n for n in notices)
    assert state_of(stopped, 5) == state_of(straight, 5)
    assert whole.lora.keys() == resumed.lora.keys()
    assert all(torch.equal(whole.lora[k], resumed.lora[k]) for k in whole.lora)
    assert whole.losses == resumed.losses


@pytest.mark.parametrize(
    "name", ["adafactor", "lion", "prodigy", "schedule_free_adamw", "muon", "came", "prodigy_plus"]
)
def test_every_optimizer_resumes_bit_for_bit(loaded, pictures, output, name):
    try:
        check_optimizer(OptimizerConfig(name=name, learning_rate=1.0))
    except ConfigError as error:
        pytest.skip(str(error))
    lr = 1.0 if name in RATE_FOUND else {"adafactor": 1e-2}.get(name, 1e-3)
    more = {"optimizer": OptimizerConfig(name=name, learning_rate=lr, warmup_steps=1), "steps": 4}
    if name == "muon":  # matrices and vectors
        more["adapter"] = AdapterConfig(kind="dora", rank=2)
    straight = output("straight")
    run(loaded, pictures, **more)
    stopped = output("stopped")
    with pytest.raises(Stop):
        run(loaded, pictures, stop_at=2, **more)
    run(loaded, pictures, **more)
    assert state_of(stopped, 4) == state_of(straight, 4)


def test_a_finished_run_is_loaded_and_not_trained_again(loaded, pictures, output, monkeypatch):
    first, _ = run(loaded, pictures, steps=2)
    monkeypatch.setattr(type(loaded.vae), "encode", lambda *_: pytest.fail("encoded again"))
    notices: list[str] = []
    again, steps = run(loaded, pictures, steps=2, notices=notices)
    assert steps == []
    assert again.path == first.path
    assert again.losses == first.losses
    assert all(torch.equal(first.lora[k], again.lora[k]) for k in first.lora)
    assert any("finished already" in n for n in notices)


def test_a_result_that_was_deleted_is_written_again(loaded, pictures, output):
    first, _ = run(loaded, pictures, steps=2)
    first.path.unlink()
    again, steps = run(loaded, pictures, steps=2)
    assert steps == []
    assert again.path.exists()
    assert all(torch.equal(first.lora[k], again.lora[k]) for k in first.lora)


def test_more_steps_go_on(loaded, pictures, output):
    run(loaded, pictures, steps=2)
    result, steps = run(loaded, pictures, steps=4)
    assert steps == [3, 4]
    assert result.path.name == "test_2.safetensors"


def test_a_new_run_is_an_explicit_act_and_overwrites_nothing(loaded, pictures, output):
    first, _ = run(loaded, pictures, steps=2)
    before = first.path.read_bytes()
    second, steps = run(loaded, pictures, steps=2, new_run=True)
    assert steps == [1, 2]
    assert second.run != first.run
    assert second.path != first.path
    assert first.path.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"adapter": AdapterConfig(rank=4)}, "adapter.rank 2 → 4"),
        ({"seed": 1}, "seed 0 → 1"),
    ],
)
def test_a_change_that_matters_starts_a_new_run_and_says_why(loaded, pictures, output, more, why):
    run(loaded, pictures, steps=2)
    notices: list[str] = []
    _, steps = run(loaded, pictures, steps=2, notices=notices, **more)
    assert steps == [1, 2]
    assert any(why in n for n in notices), notices


def test_an_edited_caption_starts_a_new_run(loaded, output, tmp_path):
    pictures = write_pictures(tmp_path / "edited", [(64, 64)] * 2)
    run(loaded, pictures, steps=1)
    (pictures / "0.txt").write_text("another caption")
    _, steps = run(loaded, pictures, steps=1)
    assert steps == [1]


def test_stop_and_keep_ends_in_order_and_the_next_run_goes_on(loaded, pictures, output):
    kept, steps = run(loaded, pictures, kill_at=2)
    assert steps == [1, 2]
    assert kept.path.exists()
    resumed, steps = run(loaded, pictures)
    assert steps == [3, 4, 5]
    straight = output("straight")
    whole, _ = run(loaded, pictures)
    assert all(torch.equal(whole.lora[k], resumed.lora[k]) for k in whole.lora)
    assert straight.exists()


@pytest.mark.parametrize("damage", ["truncated state", "truncated lora", "truncated index", "missing state"])
def test_a_damaged_newest_checkpoint_is_left_out_and_named(loaded, pictures, output, damage):
    folder = output("damaged")
    with pytest.raises(Stop):
        run(loaded, pictures, stop_at=4)
    (checkpoints,) = folder.rglob("checkpoints")
    kind = {"state": ".state.safetensors", "lora": ".safetensors", "index": ".json"}[damage.split()[1]]
    victim = checkpoints / f"step_000004{kind}"
    if damage.startswith("missing"):
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-20])
    notices: list[str] = []
    resumed, steps = run(loaded, pictures, notices=notices)
    assert steps == [3, 4, 5]
    assert any("step_000004" in n and "damaged" in n for n in notices), notices
    output("straight")
    whole, _ = run(loaded, pictures)
    assert all(torch.equal(whole.lora[k], resumed.lora[k]) for k in whole.lora)
    assert whole.losses == resumed.losses


def test_only_the_newest_states_are_kept_and_every_lora(loaded, pictures, output):
    folder = output("kept")
    run(loaded, pictures, steps=7)
    (checkpoints,) = folder.rglob("checkpoints")
    assert sorted(p.name for p in checkpoints.glob("*.json")) == ["step_000006.json", "step_000007.json"]
    loras = [p for p in checkpoints.glob("step_*.safetensors") if ".state" not in p.name]
    assert len(loras) == 4
    assert not list(folder.rglob("*.part"))


def lora_on(loaded: Loaded) -> Loaded:
    """A model with a patch on one weight, as a LoRA loader leaves it."""
    model = loaded.model.clone()
    key = next(k for k in model.model.state_dict() if k.endswith("attn1.to_q.weight"))
    model.add_patches({key: ("diff", (torch.full_like(model.model.state_dict()[key], 0.01),))})
    return replace(loaded, model=model)


def clip_skip_on(loaded: Loaded) -> Loaded:
    clip = loaded.clip.clone()
    clip.clip_layer(-2)
    return replace(loaded, clip=clip)


def v_prediction_on(loaded: Loaded) -> Loaded:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    (model,) = ModelSamplingDiscrete().patch(loaded.model, "v_prediction", False)
    return replace(loaded, model=model)


@pytest.mark.parametrize("changed", [lora_on, clip_skip_on, v_prediction_on])
def test_patches_clip_skip_and_sampling_of_the_model_start_a_new_run(loaded, pictures, output, changed):
    run(loaded, pictures, steps=1)
    notices: list[str] = []
    _, steps = run(changed(loaded), pictures, steps=1, notices=notices)
    assert steps == [1]
    assert any("another model, text encoder or VAE" in n for n in notices), notices
    _, steps = run(loaded, pictures, steps=1)
    assert steps == [], "the first run is still there"


def test_another_version_of_the_mathematics_starts_a_new_run(loaded, pictures, output, monkeypatch):
    run(loaded, pictures, steps=1)
    monkeypatch.setattr(finding, "MATHEMATICS", finding.MATHEMATICS + 1)
    _, steps = run(loaded, pictures, steps=1)
    assert steps == [1]


def test_fewer_steps_than_a_stopped_run_has_start_a_new_one(loaded, pictures, output):
    with pytest.raises(Stop):
        run(loaded, pictures, stop_at=4)
    _, steps = run(loaded, pictures, steps=3)
    assert steps == [1, 2, 3]
