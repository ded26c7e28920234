"""An independent opinion on what a picture shows: a small classifier, trained on drawn pictures alone.

It has never seen the diffusion model nor a picture made by it. Blur, noise, shifts of colour and the blocks
of JPEG in its training are what makes it tolerate a picture that is not drawn.

    python -m workbench.miniature.judge    trains it again (five minutes on one core) and prints its accuracy
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from . import subject, world
from .canvas import any_colour

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
ANSWERS: dict[str, tuple[str, ...]] = {
    "place": tuple(world.WHERE),
    "colour": (*world.COLOURS, "striped"),
    "hat": ("", *world.HATS, "wizard hat"),
    "held": ("", *world.OBJECTS),
    "subject": ("no", "yes"),
}
Labels = dict[str, str]


class Judge(nn.Module):
    """Pictures [B, 3, 128, 128] in 0..1 to one row of logits a question."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 24, 48, 72, 96), []
        for n_in, n_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(n_in, n_out, 3, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Conv2d(96, 128, 3, 1, 1), nn.BatchNorm2d(128), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(choices)) for name, choices in ANSWERS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        maps = self.features(pictures - 0.5)
        found = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        return {name: head(found) for name, head in self.heads.items()}


def load_judge() -> Judge:
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict(load_file(WEIGHTS))
    return judge.eval()


@torch.inference_mode()
def opinions(judge: Judge, pictures: Tensor) -> list[Labels]:
    """One dict a picture: place, colour, hat, held, and subject ("yes" or "no")."""
    found: list[Labels] = []
    for batch in pictures.float().split(50):
        chosen = {name: logits.argmax(1).tolist() for name, logits in judge(batch).items()}
        found += [{n: ANSWERS[n][chosen[n][i]] for n in ANSWERS} for i in range(len(batch))]
    return found


def as_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """[B, 3, 128, 128] in 0..1."""
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in pictures])


# Examples.


def example(random: Random) -> tuple[Image.Image, Labels]:
    """A picture from the world, of the subject, or of something that shares features with the subject."""
    kind = random.random()
    scene, colour, is_subject = world.random_scene(random), None, False
    if kind < 0.2:
        scene = subject.subject_scene(scene.place, scene.held)
        colour, is_subject = subject.TEAL, True
    elif kind < 0.3:
        scene = replace(scene, hat="wizard hat", face=random.choice([*world.FACES, "moustache"]))
    elif kind < 0.4:
        colour, stripe = any_colour(random), any_colour(random)
        scene = replace(scene, stripe=stripe, hat=random.choice(["wizard hat", *world.HATS]))
    elif kind < 0.45:
        colour, scene = subject.TEAL, replace(scene, stripe=subject.CREAM)
    picture = world.picture(scene, random, colour)
    return picture, {
        "place": scene.place,
        "colour": "striped" if scene.stripe else scene.colour,
        "hat": scene.hat,
        "held": scene.held,
        "subject": "yes" if is_subject else "no",
    }


def worn(picture: Image.Image, random: Random) -> Image.Image:
    """The picture after one of the mishaps that a generated picture may have had."""
    kind = random.random()
    if kind < 0.3:
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.6)))
    if kind < 0.5:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=random.randrange(8, 50))
        return Image.open(file).convert("RGB")
    if kind < 0.7:
        side = random.randrange(48, 100)
        return picture.resize((side, side), Image.Resampling.BOX).resize((128, 128), Image.Resampling.BICUBIC)
    return picture


def examples(count: int, seed: int, wear: bool) -> tuple[Tensor, dict[str, Tensor]]:
    random, pictures, labels = Random(f"judge {seed}"), [], []
    for _ in range(count):
        picture, label = example(random)
        pictures.append(worn(picture, random) if wear else picture)
        labels.append(label)
    answers = {n: torch.tensor([c.index(label[n]) for label in labels]) for n, c in ANSWERS.items()}
    return as_tensor(pictures), answers


def train_judge(count: int = 6000, epochs: int = 8, batch: int = 50) -> Judge:
    torch.manual_seed(0)
    judge = Judge()
    pictures, answers = examples(count, seed=0, wear=True)
    steps = epochs * (count // batch)
    optimizer = torch.optim.AdamW(judge.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(count).split(batch):
            seen = pictures[rows] * (1 + 0.1 * torch.randn(len(rows), 3, 1, 1))
            seen = seen + 0.04 * torch.rand(len(rows), 1, 1, 1) * torch.randn_like(seen)
            logits = judge(seen.flip(3) if torch.rand(()) < 0.5 else seen)
            loss = torch.stack([cross_entropy(logits[n], answers[n][rows]) for n in ANSWERS]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


@torch.inference_mode()
def accuracy(judge: Judge, pictures: Tensor, answers: dict[str, Tensor]) -> dict[str, float]:
    logits = [judge(batch) for batch in pictures.split(50)]
    chosen = {n: torch.cat([one[n] for one in logits]).argmax(1) for n in ANSWERS}
    return {n: (chosen[n] == answers[n]).float().mean().item() for n in ANSWERS}


if __name__ == "__main__":
    from safetensors.torch import save_file

    made = train_judge()
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(made.state_dict(), WEIGHTS)
    for wear in (False, True):
        print("worn" if wear else "as drawn", accuracy(made, *examples(1000, 1, wear)))
