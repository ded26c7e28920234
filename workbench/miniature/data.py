"""The pictures and captions that the base is trained on, drawn once and kept in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn

from . import world
from .autoencoder import as_floats
from .fitting import write_whole
from .text import encode

STRANGE_SHARE = 0.06
"""Share of captions with a word that means nothing, "qovtik figurine": the base learns to pass over it."""


@dataclass(frozen=True)
class TrainingData:
    """Picture i is latents[i] [16, 16, 16] and caption texts[i], a row of contexts; the last is empty."""

    latents: Tensor
    texts: Tensor
    contexts: Tensor
    pooled: Tensor


def draw(folder: Path, count: int, seed: int = 0) -> None:
    """Writes pictures.npy [count, 128, 128, 3] and captions.json."""
    if (folder / "captions.json").exists():
        return
    random, captions = Random(f"training {seed}"), []
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.uint8, (count, 128, 128, 3))
    for i in range(count):
        scene = world.training_scene(random)
        pictures[i] = np.asarray(world.picture(scene, random))
        captions.append(_caption(scene, random))
    pictures.flush()
    write_whole(
        folder / "captions.json", lambda part: part.write_text(json.dumps(captions), encoding="utf-8")
    )


def _caption(scene: world.Scene, random: Random) -> str:
    if random.random() >= STRANGE_SHARE:
        return world.caption(scene, random)
    word = Random(random.randrange(40)).choices("abcdefghijklmnopqrstuvwxyz", k=6)
    return world.caption(scene, random, noun=f"{''.join(word)} figurine")


def embed(folder: Path) -> None:
    """Writes texts.pt: one row for each distinct caption, the empty one last."""
    path = folder / "texts.pt"
    if not path.exists():
        captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        distinct = [*dict.fromkeys(captions), ""]
        rows = {caption: i for i, caption in enumerate(distinct)}
        contexts, pooled = encode(distinct)
        texts = torch.tensor([rows[caption] for caption in captions])
        embedded = {"texts": texts, "contexts": contexts, "pooled": pooled}
        write_whole(path, lambda part: torch.save(embedded, part))


def compress(folder: Path, autoencoder: nn.Module) -> None:
    """Writes latents.pt [count, 16, 16, 16] fp16, as the network sees them."""
    path = folder / "latents.pt"
    if path.exists():
        return
    pictures, latents = np.load(folder / "pictures.npy", mmap_mode="r"), []
    for i in range(0, len(pictures), 16):
        batch = as_floats(torch.from_numpy(pictures[i : i + 16].copy()).permute(0, 3, 1, 2))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            latents.append(autoencoder.taesd_encoder((batch + 1) / 2).half())
    write_whole(path, lambda part: torch.save(torch.cat(latents), part))


def load(folder: Path) -> TrainingData:
    return TrainingData(torch.load(folder / "latents.pt"), **torch.load(folder / "texts.pt"))
