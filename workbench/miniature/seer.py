"""A small CLIP of the miniature world: features of pictures and of captions in one space.

It stands for the judge that a user loads. It was trained on drawn pictures and their captions alone, without
a label, and has seen neither the subject nor stripes nor a generated picture: the subject is as foreign to it
as a user's figurine is to CLIP. `judge.py`, which knows the subject, is the truth.

    python -m workbench.miniature.seer    trains it again (some minutes on one core) and prints its accuracy
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from . import world
from .judge import as_tensor, worn

WEIGHTS = Path(__file__).parent / "weights" / "seer.safetensors"
WIDTH = 64


@cache
def vocabulary() -> tuple[str, ...]:
    random = Random("vocabulary")
    captions = (world.wording(world.random_scene(random), random) for _ in range(2000))
    return tuple(sorted({word for caption in captions for word in words(caption)}))


def words(text: str) -> list[str]:
    return text.lower().replace(",", " ").split()


class Seer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 24, 48, 72, 96, 128), []
        for n_in, n_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(n_in, n_out, 3, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.projection = nn.Linear(256, WIDTH)
        self.bag = nn.EmbeddingBag(len(vocabulary()), WIDTH, mode="sum")
        self.scale = nn.Parameter(torch.tensor(2.5))

    def pictures(self, pictures: Tensor) -> Tensor:
        """[B, 3, 128, 128] in 0..1 to [B, WIDTH] of length 1."""
        maps = self.trunk(pictures - 0.5)
        return normalize(self.projection(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """[B, WIDTH] of length 1; words that it does not know are passed over."""
        known = {word: i for i, word in enumerate(vocabulary())}
        rows = [[known[word] for word in words(text) if word in known] for text in texts]
        offsets = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0)[:-1].tolist()])
        return normalize(self.bag(torch.tensor([i for row in rows for i in row]), offsets), dim=1)


@cache
def load_seer() -> Seer:
    from safetensors.torch import load_file

    seer = Seer()
    seer.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return seer.eval().requires_grad_(False)


def examples(count: int, seed: int) -> tuple[Tensor, list[str]]:
    random, pictures, captions = Random(f"seer {seed}"), [], []
    for _ in range(count):
        scene = world.random_scene(random)
        pictures.append(worn(world.picture(scene, random), random))
        captions.append(world.wording(scene, random))
    return as_tensor(pictures), captions


def train_seer(count: int = 2500, epochs: int = 10, batch: int = 60) -> Seer:
    torch.manual_seed(0)
    seer = Seer()
    pictures, captions = examples(count, seed=0)
    optimizer = torch.optim.AdamW(seer.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * -(-count // batch))
    for epoch in range(epochs):
        for rows in torch.randperm(count).split(batch):
            seen = pictures[rows] * (1 + 0.1 * torch.randn(len(rows), 3, 1, 1))
            seen = seer.pictures(seen.flip(3) if torch.rand(()) < 0.5 else seen)
            told = seer.texts([captions[i] for i in rows.tolist()])
            logits, right = seer.scale.exp() * seen @ told.T, torch.arange(len(rows))
            loss = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: {loss.item():.3f}", flush=True)  # noqa: T201
    return seer.eval()


@torch.inference_mode()
def accuracy(seer: Seer, count: int = 300) -> float:
    """Share of pictures whose own caption is nearer than that of the next picture."""
    pictures, captions = examples(count, seed=1)
    near = seer.pictures(pictures) @ seer.texts(captions).T
    return (near.diag() > near.roll(-1, 1).diag()).float().mean().item()


if __name__ == "__main__":
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    made = train_seer()
    save_file({name: weight.half().contiguous() for name, weight in made.state_dict().items()}, WEIGHTS)
    print(f"own caption nearer than another: {accuracy(load_seer()):.1%}")
