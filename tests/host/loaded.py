"""The generated checkpoint as ComfyUI loads it, a folder of pictures, hashes, and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.model_management as mm
import comfy.sd
import folder_paths
import numpy as np
import torch
from PIL import Image

from in_graph_lora.trainer.config import DataConfig, MemoryConfig, OptimizerConfig, TrainConfig
from in_graph_lora.trainer.data.cache import SampleCache, TrainingData
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.host import lora
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.encode import HostLatentEncoder, pixel_step
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.ports import Lend, Loan
from in_graph_lora.trainer.runs.folder import RunFolder
from in_graph_lora.trainer.runs.placing import Places
from in_graph_lora.trainer.runs.result import Result
from in_graph_lora.trainer.session import Destination, train_lora


@dataclass(frozen=True)
class Loaded:
    model: Any
    clip: Any
    vae: Any


def load(checkpoint: Path, *, text_layers: int = 2) -> Loaded:
    """As CheckpointLoaderSimple does, in inference mode, as the executor does.

    The CLIP has two of its 12 layers, by ComfyUI's own option, and remembers what it encoded: that is the
    slowest part of a short run.
    """
    options = {"clip_l_model_config": {"num_hidden_layers": text_layers}}
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), te_model_options=options)
    encode, remembered = clip.encode_from_tokens_scheduled, {}

    def encode_once(tokens: Any, *args: Any, **kwargs: Any) -> Any:
        key = (str(tokens), clip.layer_idx)
        if key not in remembered:
            remembered[key] = encode(tokens, *args, **kwargs)
        return remembered[key]

    clip.encode_from_tokens_scheduled = encode_once
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


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """ComfyUI's output folder, for the length of the block."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(folder))
    try:
        yield
    finally:
        folder_paths.set_output_directory(before)


def train(
    loaded: Loaded,
    folder: Path,
    output: Path,
    *,
    emit: Any = lambda event: None,
    check_interrupt: Any = lambda: None,
    batch_size: int = 1,
    **config: Any,
) -> Result:
    """What TrainLoRA does, inside the inference mode that the executor sets.

    check_interrupt: called as ComfyUI's own is, before each picture and each pass through the network.
    """
    config = {"steps": 2, "optimizer": OptimizerConfig(learning_rate=1e-3), **config}
    settings = TrainConfig(name="test", data=DataConfig(batch_size=batch_size, resolution=64), **config)
    dataset = scan_folder(folder, resolution=64)
    with (
        torch.inference_mode(),
        output_folder(output),
        patch.object(mm, "throw_exception_if_processing_interrupted", check_interrupt),
    ):
        return train_on_loaded(loaded.model, loaded.clip, loaded.vae, dataset, settings, emit, new_run=True)


def encoded(loaded: Loaded, dataset: Dataset, config: TrainConfig) -> TrainingData:
    """What a run would train on."""
    data = SampleCache(
        latents=HostLatentEncoder(loaded.vae, loaded.model),
        texts=HostTextEncoder(loaded.clip, loaded.model),
        step=pixel_step(loaded.vae, loaded.model),
        emit=lambda event: None,
        check_interrupt=lambda: None,
    ).build(dataset, config)
    return TrainingData(
        samples=[s.load() for s in data.samples],
        class_samples=[s.load() for s in data.class_samples],
        validation_samples=[s.load() for s in data.validation_samples],
    )


def lend(patcher: Any) -> Lend:
    """Loans of this model alone."""

    @contextmanager
    def loan(memory: MemoryConfig) -> Iterator[Loan]:
        with borrowed(patcher, memory) as denoiser:
            yield Loan(denoiser=denoiser)

    return loan


def train_engine(
    patcher: Any,
    data: TrainingData,
    config: TrainConfig,
    output: Path,
    emit: Any = lambda event: None,
    *,
    folder: RunFolder | None = None,
    key: str = "",
) -> Result:
    """The engine alone, on samples that are not encoded by a loaded VAE and CLIP.

    folder: a run to go on with.
    """
    destination = Destination(
        places=Places(loras=output / "loras", embeddings=output / "embeddings"),
        runs=output / "runs",
        base_model="tiny",
        key=key,
        file_names=lambda layers: lora.file_names(patcher, layers),
    )
    with torch.inference_mode(False):
        return train_lora(
            lend(patcher),
            data,
            config,
            destination,
            steps=config.total_steps(sum(s.repeats for s in data.samples)),
            emit=emit,
            check_interrupt=lambda: None,
            folder=folder,
        )
