"""The generated checkpoint as ComfyUI loads it, a folder of pictures, and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import numpy as np
import torch
from comfy.sd import CLIP
from PIL import Image

from in_graph_lora.trainer.config import DataConfig, OptimizerConfig, TrainConfig
from in_graph_lora.trainer.data.cache import SampleCache, TrainingData, check_dataset
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.host import lora
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.encode import HostLatentEncoder, pixel_step
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.ports import Lend, Loan
from in_graph_lora.trainer.session import Destination, Result, train_lora


@dataclass(frozen=True)
class Loaded:
    model: Any
    clip: Any
    vae: Any


def load(checkpoint: Path) -> Loaded:
    """As CheckpointLoaderSimple does, in inference mode, as the executor does."""
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
    return Loaded(model, clip, vae)


def write_pictures(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i, (w, h) in enumerate(sizes):
        coarse = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a photo of aawxbc figurine {i}")
    return folder


def weight_hash(module: torch.nn.Module) -> str:
    """sha256 over every byte of every parameter and buffer, with its name."""
    h = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        h.update(name.encode())
        h.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def identities(module: torch.nn.Module) -> dict[str, tuple[int, bool]]:
    """id of every module, parameter and buffer, and whether it is trained: the objects, not their values."""
    named = [*module.named_modules(), *module.named_parameters(), *module.named_buffers()]
    return {f"{type(x).__name__} {name}": (id(x), getattr(x, "requires_grad", False)) for name, x in named}


_cached: dict[tuple[int, str], TrainingData] = {}


def cache(loaded: Loaded, dataset: Dataset, config: TrainConfig) -> TrainingData:
    """Encoded once for each model and dataset: the text encoder is the slowest part of a short run."""
    check_dataset(dataset, config)
    key = (id(loaded.vae), dataset.digest + str(config.objective.caption_dropout) + str(config.prior))
    if key not in _cached or not isinstance(loaded.clip, CLIP):
        _cached[key] = _encode(loaded, dataset, config)
    return _cached[key]


def _encode(loaded: Loaded, dataset: Dataset, config: TrainConfig) -> TrainingData:
    return SampleCache(
        latents=HostLatentEncoder(loaded.vae, loaded.model),
        texts=HostTextEncoder(loaded.clip, loaded.model),
        step=pixel_step(loaded.vae, loaded.model),
        emit=lambda event: None,
        check_interrupt=lambda: None,
    ).build(dataset, config)


def lend(patcher: Any) -> Lend:
    """Loans of this model alone."""

    @contextmanager
    def loan() -> Iterator[Loan]:
        with borrowed(patcher) as denoiser:
            yield Loan(denoiser=denoiser)

    return loan


def config_for(dataset: Dataset, *, steps: int = 2, batch_size: int = 1, **more: Any) -> TrainConfig:
    more.setdefault("optimizer", OptimizerConfig(learning_rate=1e-3))
    data = DataConfig(batch_size=batch_size, resolution=dataset.resolution, digest=dataset.digest)
    return TrainConfig(name="test", steps=steps, data=data, **more)


def train(
    loaded: Loaded,
    folder: Path,
    output: Path,
    *,
    emit: Any = lambda event: None,
    check_interrupt: Any = lambda: None,
    **config: Any,
) -> Result:
    """What TrainLoRA does, inside the inference mode that the executor sets."""
    dataset = scan_folder(folder, resolution=64)
    settings = config_for(dataset, **config)
    destination = Destination(
        loras=output / "loras",
        runs=output / "runs",
        base_model="sd_v1",
        file_names=lambda layers: lora.file_names(loaded.model, layers),
    )
    with torch.inference_mode(), torch.inference_mode(False):
        data = cache(loaded, dataset, settings)
        return train_lora(
            lend(loaded.model), data, settings, destination, emit=emit, check_interrupt=check_interrupt
        )
