"""Training on the model that ComfyUI has loaded: nothing copied, nothing changed, right files."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import comfy.lora
import comfy.model_management as mm
import psutil
import pytest
import torch
from safetensors import safe_open

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.config import AdapterConfig, OptimizerConfig, TrainConfig
from in_graph_lora.trainer.errors import ConfigError, DatasetError, ModelError, TrainerError
from in_graph_lora.trainer.events import RunStarted
from in_graph_lora.trainer.host.encode import HostLatentEncoder
from in_graph_lora.trainer.host.identity import model_fingerprint
from in_graph_lora.trainer.host.lora import apply_lora
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.host.sample import SampleSettings, encode_prompt, sample_image
from in_graph_lora.trainer.host.staging import Staging, trainable_view

from .loaded import Loaded, identities, train, weight_hash, write_pictures

SETTINGS = SampleSettings(steps=2, cfg=3.0, sampler_name="euler", scheduler="normal", width=64, height=64)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = [(64, 64), (140, 128), (256, 64), (64, 256), (64, 64), (300, 310), (128, 129), (64, 65)]
    return write_pictures(tmp_path_factory.mktemp("pictures"), sizes)


def picture(loaded: Loaded, model=None, clip=None, seed: int = 3) -> torch.Tensor:
    with torch.inference_mode():
        clip = clip or loaded.clip
        positive, negative = encode_prompt(clip, "a photo of a cat"), encode_prompt(clip, "")
        return sample_image(model or loaded.model, loaded.vae, positive, negative, seed, SETTINGS)


@pytest.fixture(scope="module")
def trained(loaded: Loaded, pictures: Path, tmp_path_factory: pytest.TempPathFactory):
    events: list = []
    before = weight_hash(loaded.model.model), identities(loaded.model.model), picture(loaded)
    result = train(
        loaded, pictures, tmp_path_factory.mktemp("out"), steps=4, batch_size=2, emit=events.append
    )
    return result, events, before


def test_the_model_is_bit_identical_and_made_of_the_same_objects_after_a_run(loaded, trained):
    _, _, (hash_before, objects_before, picture_before) = trained
    assert weight_hash(loaded.model.model) == hash_before
    assert identities(loaded.model.model) == objects_before
    assert torch.equal(picture(loaded), picture_before)
    assert not mm.in_training
    assert not hasattr(loaded.model.model.diffusion_model, "peft_config")


class Stop(BaseException):
    """Like ComfyUI's interrupt, which is no Exception."""


@pytest.mark.parametrize("error", [Stop, RuntimeError, torch.OutOfMemoryError])
def test_the_model_is_bit_identical_after_an_interrupt_and_after_an_exception(
    loaded, pictures, tmp_path, error
):
    before = weight_hash(loaded.model.model), identities(loaded.model.model)
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) > 2:
            raise error("stop")

    with pytest.raises(error):
        train(loaded, pictures, tmp_path, steps=50, check_interrupt=interrupt)
    assert (weight_hash(loaded.model.model), identities(loaded.model.model)) == before
    assert not mm.in_training


def test_an_interrupt_leaves_a_loadable_lora_in_the_run_folder(loaded, pictures, tmp_path):
    def interrupt():
        if len(list(tmp_path.rglob("events.jsonl"))) and steps_done(tmp_path) >= 2:
            raise Stop

    with pytest.raises(Stop):
        train(loaded, pictures, tmp_path, steps=50, check_interrupt=interrupt)
    (saved,) = tmp_path.rglob("step_??????.safetensors")
    assert saved.name == "step_000002.safetensors"
    with safe_open(saved, framework="pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
    model, _ = apply_lora(loaded.model, None, tensors, 1.0, 1.0)
    assert not torch.equal(picture(loaded, model), picture(loaded))
    assert not (tmp_path / "loras").exists()


def steps_done(folder: Path) -> int:
    (events,) = folder.rglob("events.jsonl")
    return sum('"StepDone"' in line for line in events.read_text().splitlines())


def test_an_untrained_adapter_leaves_the_output_bitwise_unchanged(loaded):
    x, sigma = torch.randn(1, 4, 16, 16), torch.tensor([3.0])
    context = torch.randn(1, 77, 768)
    from comfy.conds import CONDCrossAttn

    with borrowed(loaded.model) as denoiser, torch.no_grad():
        plain = denoiser.predict(x, sigma, [{"c_crossattn": CONDCrossAttn(context)}])
        with injected(denoiser.net, AdapterConfig(), seed=0):
            assert torch.equal(plain, denoiser.predict(x, sigma, [{"c_crossattn": CONDCrossAttn(context)}]))


def test_a_model_is_known_by_its_own_weights_also_while_a_lora_is_patched_into_them(loaded, trained):
    result, _, _ = trained
    picture(loaded)
    before = model_fingerprint(loaded.model)
    patched, _ = apply_lora(loaded.model, None, result.lora, 1.0, 1.0)
    assert model_fingerprint(patched) != before
    picture(loaded, patched)
    assert model_fingerprint(loaded.model) == before


def test_staged_weights_are_on_the_device_for_the_loan_only():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = identities(net)
    with trainable_view(net, Staging(torch.device("meta")).view):
        assert {p.device.type for p in [*net.parameters(), *net.buffers()]} == {"meta"}
    assert identities(net) == before


@pytest.mark.slow
def test_a_run_adds_no_second_copy_of_the_model(loaded, pictures, tmp_path):
    mm.load_models_gpu([loaded.model])  # an earlier test may have left a LoRA's weights in its place
    size = loaded.model.model_size()
    addresses = {p.data_ptr() for p in loaded.model.model.parameters()}
    process = psutil.Process()
    gc.collect()
    before, growth, aliased = process.memory_info().rss, [], []

    def check():
        growth.append(process.memory_info().rss - before)
        aliased.append({p.data_ptr() for p in loaded.model.model.parameters()} >= addresses)

    train(loaded, pictures, tmp_path, steps=3, check_interrupt=check)
    assert all(aliased), "the parameters that are trained on must be the loaded ones"
    assert max(growth) < 0.9 * size, f"resident memory grew by {max(growth) / size:.2f} models"


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_batch_of_b_sends_b_samples_through_the_network_in_a_step(loaded, pictures, tmp_path, batch_size):
    sent, begun = [], []
    net = loaded.model.model.diffusion_model
    hook = net.register_forward_pre_hook(lambda module, args: sent.append(len(args[0])) if begun else None)

    def emit(event):
        if isinstance(event, RunStarted):
            begun.append(event)

    try:
        train(loaded, pictures, tmp_path, steps=3, batch_size=batch_size, emit=emit)
    finally:
        hook.remove()
    assert sum(sent) == 3 * batch_size


def test_the_saved_file_loads_whole_through_the_stock_lora_loader_and_equals_apply_lora(
    loaded, trained, tmp_path, caplog
):
    import folder_paths

    import nodes as comfy_nodes

    result, _, _ = trained
    name = "stock_loader.safetensors"  # of this test alone: the folders of other tests are listed too
    shutil.copy(result.path, tmp_path / name)
    folder_paths.add_model_folder_path("loras", str(tmp_path))
    with caplog.at_level("WARNING"):
        stock, _ = comfy_nodes.LoraLoader().load_lora(loaded.model, loaded.clip, name, 1.0, 1.0)
    assert "lora key not loaded" not in caplog.text
    assert "NOT LOADED" not in caplog.text
    keys = comfy.lora.model_lora_keys_unet(loaded.model.model, {})
    assert 3 * len(comfy.lora.load_lora(dict(result.lora), keys)) == len(result.lora)
    ours, _ = apply_lora(loaded.model, None, result.lora, 1.0, 1.0)
    assert torch.equal(picture(loaded, stock), picture(loaded, ours))
    assert not torch.equal(picture(loaded, ours), picture(loaded))


def test_a_run_leaves_config_events_curve_and_metadata(trained):
    result, events, _ = trained
    config = TrainConfig.from_dict(json.loads((result.run / "config.json").read_text()))
    lines = [json.loads(line) for line in (result.run / "events.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "StepDone"]
    assert [line["loss"] for line in steps] == result.losses
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert result.loss_curve.stat().st_size > 1000
    with safe_open(result.path, framework="pt") as f:
        metadata = f.metadata()
    assert metadata["ss_network_dim"] == str(config.adapter.rank)
    assert metadata["ss_steps"] == "4"


def test_a_name_that_is_taken_gets_a_number(loaded, pictures, tmp_path):
    first = train(loaded, pictures, tmp_path, steps=1)
    second = train(loaded, pictures, tmp_path, steps=1)
    assert (first.path.name, second.path.name) == ("test.safetensors", "test_2.safetensors")
    assert first.run != second.run


@pytest.mark.slow
def test_the_same_seed_gives_the_same_lora_and_another_seed_another(loaded, pictures, tmp_path):
    first, again, other = (train(loaded, pictures, tmp_path, steps=2, seed=s).lora for s in (5, 5, 6))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.slow
def test_the_loss_falls_over_60_steps_on_a_small_batch(loaded, tmp_path):
    folder = write_pictures(tmp_path / "two", [(64, 64), (64, 64)])
    losses = train(
        loaded, folder, tmp_path, steps=60, batch_size=2, optimizer=OptimizerConfig(learning_rate=3e-3)
    ).losses
    early, late = sum(losses[:15]) / 15, sum(losses[-15:]) / 15
    assert late < 0.9 * early, f"loss went from {early:.4f} to {late:.4f}"


@pytest.mark.parametrize(("rate", "changed"), [(0.0, False), (1e-3, True)])
def test_the_same_steps_change_pictures_unless_the_learning_rate_is_zero(
    loaded, pictures, tmp_path, rate, changed
):
    result = train(loaded, pictures, tmp_path, steps=2, optimizer=OptimizerConfig(learning_rate=rate))
    model, _ = apply_lora(loaded.model, None, result.lora, 1.0, 1.0)
    assert torch.equal(picture(loaded, model), picture(loaded)) is not changed


@pytest.mark.parametrize("batch_size", [9, 100])
def test_a_batch_larger_than_the_dataset_is_refused(loaded, pictures, tmp_path, batch_size):
    with pytest.raises(ConfigError, match="larger than the dataset"):
        train(loaded, pictures, tmp_path, batch_size=batch_size)
    assert not any(tmp_path.iterdir())


def test_an_empty_caption_is_refused_before_anything_is_written(loaded, tmp_path):
    folder = write_pictures(tmp_path / "in", [(64, 64)] * 2)
    (folder / "1.txt").write_text(" ")
    with pytest.raises(DatasetError, match=r"1 pictures have no caption \(1.png\)"):
        train(loaded, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vae_of_another_family_is_refused(loaded):
    class SixteenChannels:
        latent_channels = 16

    with pytest.raises(ModelError, match="latents of 16 channels and the model needs 4"):
        HostLatentEncoder(SixteenChannels(), loaded.model)


def test_a_clip_of_another_family_is_refused(loaded, pictures, tmp_path):
    class Wide:
        patcher, layer_idx = loaded.clip.patcher, None
        tokenizer, tokenizer_options, use_clip_schedule = None, None, False

        def tokenize(self, text):
            return text

        def encode_from_tokens_scheduled(self, tokens, show_pbar=False):
            return [[torch.zeros(1, 77, 2048), {}]]

    with pytest.raises(ModelError, match="width 2048 and the model needs 768"):
        train(Loaded(loaded.model, Wide(), loaded.vae), pictures, tmp_path)


def test_a_lora_that_fits_nowhere_is_refused(loaded):
    with pytest.raises(TrainerError, match="fit nothing in this model"):
        apply_lora(loaded.model, None, {"lora_unet_nothing.lora_up.weight": torch.zeros(1, 1)}, 1.0, 1.0)
