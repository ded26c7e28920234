"""What option nodes ask for, through TrainLoRA's own path on the loaded checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import comfy.lora
import pytest
import torch
from safetensors import safe_open

from in_graph_lora.trainer.adapters.lora_file import read_lora
from in_graph_lora.trainer.adapters.metadata import DORA_NORM
from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PriorConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ConfigError, DatasetError, LoraFileError, ModelError, TrainingError
from in_graph_lora.trainer.events import Notice, StepDone
from in_graph_lora.trainer.host import paths
from in_graph_lora.trainer.host.training import train_on_loaded

from .loaded import Loaded, identities, weight_hash, write_pictures

pytestmark = [pytest.mark.usefixtures("output"), pytest.mark.slow]

FAST = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="constant")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64), (64, 64), (128, 32)])


KIND = ("ss_network_module", "ss_network_args", DORA_NORM)


def run(loaded: Loaded, pictures: Path, emit=lambda event: None, *, new_run: bool = True, **sections):
    dataset = scan_folder(pictures, resolution=64)
    config = TrainConfig(
        **{"name": "test", "steps": 2, "optimizer": FAST, "data": DataConfig(resolution=64), **sections}
    )
    with torch.inference_mode():
        return train_on_loaded(loaded.model, loaded.clip, loaded.vae, dataset, config, emit, new_run=new_run)


def files(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict


def test_the_text_encoder_trains_at_its_own_rate_and_its_tensors_load_through_the_stock_loader(
    loaded, pictures
):
    before = weight_hash(loaded.clip.cond_stage_model), identities(loaded.clip.cond_stage_model)
    optimizer = replace(FAST, text_encoder_lr=5e-4)
    result = run(loaded, pictures, optimizer=optimizer, adapter=AdapterConfig(rank=2))
    assert (weight_hash(loaded.clip.cond_stage_model), identities(loaded.clip.cond_stage_model)) == before
    text = {k: v for k, v in result.lora.items() if k.startswith("lora_te_")}
    assert len(text) == 3 * 2 * 6  # two layers of q, k, v, out, fc1, fc2
    assert all(v.abs().max() > 0 for k, v in text.items() if k.endswith("lora_up.weight"))
    keys = comfy.lora.model_lora_keys_unet(loaded.model.model, {})
    keys = comfy.lora.model_lora_keys_clip(loaded.clip.cond_stage_model, keys)
    assert 3 * len(comfy.lora.load_lora(dict(result.lora), keys)) == len(result.lora)


def test_a_frozen_text_encoder_gets_no_tensors(loaded, pictures):
    assert all(k.startswith("lora_unet_") for k in run(loaded, pictures).lora)


def test_training_goes_on_from_a_file(loaded, pictures, output):
    first = run(loaded, pictures, adapter=AdapterConfig(rank=4, alpha=2), name="first")
    nothing = replace(FAST, learning_rate=0.0)
    adapter = AdapterConfig(rank=32, start_from=first.path.name)
    again = run(loaded, pictures, optimizer=nothing, adapter=adapter, name="again")
    assert again.lora.keys() == first.lora.keys()
    for key, tensor in first.lora.items():
        torch.testing.assert_close(again.lora[key], tensor, rtol=1e-6, atol=1e-7)
    on = run(loaded, pictures, adapter=adapter, name="on")
    assert any(not torch.equal(on.lora[k], first.lora[k]) for k in first.lora)


@pytest.mark.parametrize("style", ["comfyui", "lycoris"])
def test_a_file_that_went_on_from_dora_is_known_as_dora_though_the_node_says_lora(loaded, pictures, style):
    far, still = replace(FAST, learning_rate=0.05), replace(FAST, learning_rate=0.0)
    adapter = AdapterConfig(kind="dora", rank=2, file_names=style)
    first = last = run(loaded, pictures, optimizer=far, adapter=adapter, name="1")
    for name in "23":
        adapter = AdapterConfig(file_names=style, start_from=last.path.name)
        last = run(loaded, pictures, optimizer=still, adapter=adapter, name=name)
    (a, about), (b, about_last) = (read_lora(r.path) for r in (first, last))
    assert {key: about_last.get(key) for key in KIND} == {key: about[key] for key in KIND}
    for key, tensor in a.items():
        torch.testing.assert_close(b[key], tensor, rtol=1e-4, atol=1e-6)


def test_a_starting_file_with_keys_that_fit_nowhere_is_refused_by_name(loaded, pictures):
    from safetensors.torch import save_file

    save_file(
        {"lora_unet_no_such_layer.lora_down.weight": torch.zeros(2, 2)},
        paths.lora_directory() / "odd.safetensors",
    )
    with pytest.raises(LoraFileError, match="lora_unet_no_such_layer"):
        run(loaded, pictures, adapter=AdapterConfig(start_from="odd.safetensors"))


@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_changes_no_bit_of_the_result(loaded, pictures, every):
    plain = run(loaded, pictures)
    saved = run(loaded, pictures, memory=MemoryConfig(fit="manual", checkpointing=every))
    for key, tensor in plain.lora.items():
        torch.testing.assert_close(saved.lora[key], tensor, rtol=1e-5, atol=1e-7)


def test_another_precision_trains_with_fp32_adapters_and_leaves_the_model_as_it_was(loaded, pictures):
    before = weight_hash(loaded.model.model)
    result = run(loaded, pictures, memory=MemoryConfig(precision="bf16"))
    assert all(t.dtype == torch.float32 for t in result.lora.values())
    assert all(torch.isfinite(torch.tensor(x)) for x in result.losses)
    again = run(loaded, pictures, memory=MemoryConfig(precision="bf16"), name="again")
    assert again.losses == result.losses
    exact = run(loaded, pictures)
    assert result.losses != exact.losses
    assert result.losses == pytest.approx(exact.losses, rel=0.05)
    assert weight_hash(loaded.model.model) == before
    assert loaded.model.model.get_dtype_inference() == torch.float32


def test_epochs_set_the_number_of_steps(loaded, pictures):
    steps = []
    run(loaded, pictures, emit=lambda e: steps.append(e) if isinstance(e, StepDone) else None, epochs=2)
    assert [(e.step, e.steps) for e in steps] == [(i, 6) for i in range(1, 7)]


def test_missing_class_pictures_are_made_by_the_untouched_model_and_used_again(loaded, pictures, output):
    prior = PriorConfig(method="class_images", class_prompt="a photo of a figurine", class_images=2, steps=1)
    notices = []
    run(loaded, pictures, emit=lambda e: notices.append(e) if isinstance(e, Notice) else None, prior=prior)
    made = sorted((output / "in-graph-lora" / "class-images").rglob("*.png"))
    assert len(made) == 2
    assert "generated 2 class pictures" in notices[0].message
    times = [p.stat().st_mtime_ns for p in made]
    run(loaded, pictures, prior=prior, name="again")
    assert [p.stat().st_mtime_ns for p in made] == times


@pytest.mark.parametrize(
    ("sections", "lever"),
    [
        (
            {"data": DataConfig(batch_size=2, resolution=64), "memory": MemoryConfig(fit="manual")},
            "batch_size to 1 and accumulation to 2",
        ),
        ({"memory": MemoryConfig(fit="manual")}, "checkpointing to 1"),
        ({"memory": MemoryConfig(fit="manual", checkpointing=1)}, r"streamed to 0\.5"),
        ({"memory": MemoryConfig(fit="manual", checkpointing=1, streamed=0.5)}, r"streamed to 1 "),
        ({"memory": MemoryConfig(fit="manual", checkpointing=1, streamed=1)}, "set base_precision to int8"),
        (
            {"memory": MemoryConfig(fit="manual", checkpointing=1, streamed=1, base_precision="int8")},
            "lower the resolution",
        ),
        ({"memory": MemoryConfig()}, "lower the resolution"),
    ],
)
def test_out_of_memory_keeps_its_type_and_names_the_next_lever(loaded, pictures, sections, lever, request):
    before = weight_hash(loaded.model.model)

    def exhausted(module, args):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    hook = loaded.model.model.diffusion_model.register_forward_pre_hook(exhausted)
    request.addfinalizer(hook.remove)
    with pytest.raises(torch.OutOfMemoryError, match=lever):
        run(loaded, pictures, **sections)
    assert weight_hash(loaded.model.model) == before


def test_a_loss_that_is_no_number_is_skipped_counted_and_stops_the_run_at_the_third(
    loaded, pictures, output, request
):
    seen = []
    hook = loaded.model.model.diffusion_model.register_forward_hook(
        lambda module, args, out: out * float("nan") if len(seen) >= 1 else out
    )
    request.addfinalizer(hook.remove)
    with pytest.raises(TrainingError, match="not a number in 3 steps in a row"):
        run(loaded, pictures, emit=lambda e: seen.append(e) if isinstance(e, StepDone) else None, steps=50)
    assert [e.skipped for e in seen] == [False, True, True, True]
    (kept,) = output.rglob("step_??????.safetensors")
    assert all(torch.isfinite(t).all() for t in files(kept).values())
    lines = [json.loads(line) for line in next(output.rglob("events.jsonl")).read_text().splitlines()]
    assert [x["loss"] is None for x in lines if x["event"] == "StepDone"] == [False, True, True, True]


def test_latents_that_are_no_numbers_are_refused_with_the_remedy(loaded, pictures, monkeypatch):
    encode = type(loaded.vae).encode
    monkeypatch.setattr(type(loaded.vae), "encode", lambda self, p: encode(self, p) * float("nan"))
    with pytest.raises(DatasetError, match="--fp32-vae"):
        run(loaded, pictures)


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"adapter": AdapterConfig(targets="regex:no_such_layer")}, ConfigError, "no_such_layer"),
        ({"objective": ObjectiveConfig(weighting="cosmap")}, ConfigError, "'cosmap' is not defined"),
        ({"data": DataConfig(batch_size=99)}, ConfigError, "larger than the dataset"),
        ({"prior": PriorConfig(method="class_images")}, DatasetError, "needs class pictures"),
        (
            {"adapter": AdapterConfig(start_from="missing.safetensors")},
            LoraFileError,
            "not in ComfyUI's list",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_picture_is_encoded(
    loaded, pictures, output, monkeypatch, sections, error, message
):
    monkeypatch.setattr(type(loaded.vae), "encode", lambda *_: pytest.fail("encoded"))
    with pytest.raises(error, match=message):
        run(loaded, pictures, **sections)
    assert not (output / "in-graph-lora").exists()


def test_a_model_that_removes_no_noise_is_refused(loaded, pictures):
    import comfy.model_sampling as sampling

    class Direct(sampling.ModelSamplingDiscrete, sampling.IMG_TO_IMG):
        pass

    model = loaded.model.clone()
    model.add_object_patch("model_sampling", Direct())
    with pytest.raises(ModelError, match="removes no noise"):
        run(Loaded(model, loaded.clip, loaded.vae), pictures)
