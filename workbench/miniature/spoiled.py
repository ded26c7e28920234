"""LoRAs of the miniature's subject, one trained well and others made to fail in ways that are known.

    python -m workbench.miniature.spoiled FOLDER --comfyui FOLDER

writes FOLDER/<name>.safetensors; what is there is passed over. Some twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from .. import ROOT

STEPS, RATE, RANK, EVERY = 200, 3e-3, 16, 20
PICTURES, CLASS_PICTURES = 15, 60
FEW_PICTURES, MANY_STEPS = 5, 400
WORK = ROOT / ".cache" / "spoiled"

Loaded = tuple[Any, Any, Any]
"""Model, CLIP, VAE."""

TITLES = {
    "good": f"trained well: {PICTURES} pictures, {STEPS} steps, class pictures",
    "good-060": "the same at step 60",
    "good-120": "the same at step 120",
    "too-few": "too few steps: the same at step 20",
    "too-many": f"{MANY_STEPS} steps on {FEW_PICTURES} pictures, no class pictures",
    "no-class": "no class pictures",
    "rate": "a rate ten times too high",
    "swapped": "captions swapped",
    "noise": "a LoRA of noise",
}


def trained(loaded: Loaded, folder: Path, done: Path) -> None:
    """Writes what is missing in `done`. folder: for pictures and runs."""
    from in_graph_lora.trainer.config import AdapterConfig, OptimizerConfig, SaveConfig

    from . import experiment

    def train(
        name: str, pictures: Path, classes: Path | None, *, rate: float = RATE, steps: int = STEPS
    ) -> None:
        if (done / f"{name}.safetensors").exists():
            return
        lora = experiment.train_ours(
            loaded,
            pictures,
            classes,
            name,
            steps=steps,
            adapter=AdapterConfig(rank=RANK, targets="attention+feed-forward"),
            optimizer=OptimizerConfig(learning_rate=rate),
            save=SaveConfig(every=EVERY),
        )
        if name == "good":
            for step, other in ((20, "too-few"), (60, "good-060"), (120, "good-120")):
                (found,) = folder.rglob(f"step_{step:06}.safetensors")
                shutil.copy(found, done / f"{other}.safetensors")
        save(lora, done / f"{name}.safetensors")

    pictures, classes = experiment.write_pictures(folder, PICTURES, CLASS_PICTURES)
    few, _ = experiment.write_pictures(folder, FEW_PICTURES, 0)
    train("good", pictures, classes)
    train("no-class", pictures, None)
    train("swapped", swapped(folder), None)
    train("too-many", few, None, steps=MANY_STEPS)
    train("rate", pictures, classes, rate=10 * RATE)
    if not (done / "noise.safetensors").exists():
        save(noise_like(load(done / "good.safetensors")), done / "noise.safetensors")


def remembering(loaded: Loaded) -> Loaded:
    """Each text is encoded once: the text encoder is by far the largest part of the miniature."""
    clip, encoded = loaded[1], {}
    encode = clip.encode_from_tokens_scheduled

    def encode_once(tokens: Any, *args: Any, **kwargs: Any) -> Any:
        key = str(tokens)
        if key not in encoded:
            encoded[key] = encode(tokens, *args, **kwargs)
        return encoded[key]

    clip.encode_from_tokens_scheduled = encode_once
    return loaded


def swapped(folder: Path) -> Path:
    """The subject's pictures among others, each with a caption of another one."""
    from . import subject

    pairs = subject.subject_pictures(PICTURES) + subject.class_pictures(2 * PICTURES)
    captions = [caption for _, caption in pairs]
    Random(0).shuffle(captions)
    mixed = [(picture, caption) for (picture, _), caption in zip(pairs, captions, strict=True)]
    return subject.write(mixed, folder / "swapped")


def noise_like(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Random tensors of the same names, shapes and norms."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def drawn(name: str, tensor: Any) -> Any:
        if name.endswith(".alpha"):
            return tensor
        noise = torch.randn(tensor.shape, generator=generator)
        return (noise * tensor.float().norm() / noise.norm()).to(tensor.dtype)

    return {name: drawn(name, tensor) for name, tensor in lora.items()}


def load(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def save(lora: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in lora.items()}, part)
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train LoRAs of the miniature that fail in known ways.")
    parser.add_argument("folder", type=Path, nargs="?", default=WORK)
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    args = parser.parse_args()
    from ..dev import base, host

    logging.disable(logging.INFO)
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    host.import_comfyui(args.comfyui.resolve(), base.prepare(folder / "base"))
    host.register_pack()
    from . import checkpoint, sampling

    path = checkpoint.write_checkpoint(folder / "base.safetensors", checkpoint.WEIGHTS)
    trained(remembering(sampling.load_checkpoint(path)), folder / "base", folder)


if __name__ == "__main__":
    main()
