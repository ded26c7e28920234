"""Training goes on from a LoRA that ComfyUI's own trainer saved, which changes norms and biases too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comfy_extras.nodes_train import SaveLoRA

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.adapters.lora_file import read_lora
from in_graph_lora.trainer.adapters.readers import read_start
from in_graph_lora.trainer.config import AdapterConfig
from in_graph_lora.trainer.events import Notice, RunStarted
from in_graph_lora.trainer.host import lora as host
from in_graph_lora.trainer.host import paths
from in_graph_lora.trainer.host.model import borrowed
from workbench.miniature import experiment

from .loaded import Loaded, train, write_pictures

_PAIR = ("lora_up.weight", "lora_down.weight")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64)])


@pytest.fixture(scope="module")
def saved(loaded: Loaded, pictures: Path, host_base: Path) -> Iterator[Path]:
    """Written by TrainLoraNode and SaveLoRA, at their defaults."""
    tensors = experiment.train_core(
        (loaded.model, loaded.clip, loaded.vae), pictures, steps=2, rank=4, batch=1, learning_rate=0.1
    )
    SaveLoRA.execute(tensors, "loras/core")
    (made,) = paths.lora_directory().glob("core*.safetensors")
    listed = host_base / "models" / "loras" / made.name
    listed.parent.mkdir(parents=True, exist_ok=True)
    made.rename(listed)
    yield listed
    listed.unlink()


def test_what_fits_is_the_start_and_the_rest_is_named(loaded, pictures, saved, tmp_path):
    tensors, _ = read_lora(saved)
    pairs = [key.removesuffix(".lora_up.weight") for key in tensors if key.endswith(".lora_up.weight")]
    rest = {key for key in tensors if key.endswith((".diff", ".diff_b"))}
    assert pairs
    assert any(tensors[key].any() for key in rest)
    events: list = []
    train(loaded, pictures, tmp_path, emit=events.append, adapter=AdapterConfig(start_from=saved.name))
    (told,) = [e.message for e in events if isinstance(e, Notice) and "no adapter can hold" in e.message]
    assert told.startswith(f"{len(rest)} tensors of {saved.name} ")
    assert any(key in told for key in rest)
    assert [e.layers for e in events if isinstance(e, RunStarted)] == [len(pairs)]


def test_the_start_acts_as_the_files_pairs_do(loaded, saved):
    tensors, _ = read_lora(saved)
    model = loaded.model
    start = read_start(tensors, host.aliases(model), host.layer_shapes(model))
    with (
        torch.inference_mode(False),
        borrowed(model) as denoiser,
        injected(denoiser.net, AdapterConfig(), seed=0, start=start) as adapter,
    ):
        changed = 0
        for name, layer in adapter.layers.items():
            file = {role: tensors[f"diffusion_model.{name}.{role}"].float() for role in ("alpha", *_PAIR)}
            b, a = (file[role] for role in _PAIR)
            expected = file["alpha"] / len(a) * b @ a.flatten(1)
            found = layer.get_delta_weight("default").flatten(1)
            torch.testing.assert_close(found, expected)
            changed += bool(expected.any())
        assert changed > len(adapter.layers) / 2
