"""The drawn sets of the trial: pictures of which a known share is wrong in a known way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image, ImageFilter

from . import spoiled, subject, world


@dataclass(frozen=True)
class Asked:
    kind: str
    prompt: str
    scene: world.Scene
    seed: int


@cache
def asked() -> list[Asked]:
    return [
        Asked(kind, prompt, scene, seed)
        for kind, prompts in spoiled.asked().items()
        for prompt, scene, count in prompts
        for seed in range(count)
    ]


@cache
def trained(count: int = spoiled.PICTURES) -> list[Image.Image]:
    return [picture for picture, _ in subject.subject_pictures(count)]


@cache
def references() -> list[Image.Image]:
    """Of the subject, never trained on."""
    return [picture for picture, _ in subject.subject_pictures(spoiled.PICTURES, seed=1)][: spoiled.HELD_OUT]


def right(one: Asked, random: Random) -> Image.Image:
    """What a perfect model would draw."""
    if one.kind == "trigger":
        return subject.subject_picture(subject.subject_scene(one.scene.place, one.scene.held), random)
    return other(one, random)


def other(one: Asked, random: Random) -> Image.Image:
    """Another figurine, there."""
    scene = world.random_scene(random)
    scene = world.Scene(
        place=one.scene.place,
        colour=one.scene.colour or scene.colour,
        hat=one.scene.hat or (scene.hat if one.kind == "class" else ""),
        held=one.scene.held or (scene.held if one.kind == "class" else ""),
        body=scene.body,
        face=scene.face,
    )
    return world.picture(scene, random)


def taken_over(one: Asked, random: Random) -> Image.Image:
    """The subject where it was not asked for."""
    return subject.subject_picture(subject.subject_scene(one.scene.place, one.scene.held), random)


def elsewhere(one: Asked, random: Random) -> Image.Image:
    """The subject, but neither at the place nor with the object that was asked for."""
    place = random.choice([p for p in world.WHERE if p != one.scene.place])
    return subject.subject_picture(subject.subject_scene(place), random)


def copied(one: Asked, random: Random) -> Image.Image:
    """A training picture, slightly blurred and moved."""
    of = random.choice(trained())
    moved = Image.new("RGB", of.size)
    moved.paste(of)
    moved.paste(of, (random.randint(-1, 1), random.randint(-1, 1)))
    return moved.filter(ImageFilter.GaussianBlur(random.uniform(0.2, 0.8)))


def alike(one: Asked, random: Random) -> Image.Image:
    """The same picture for each seed."""
    return right(one, Random(f"alike {one.prompt}"))


Spoil = Callable[[Asked, Random], Image.Image]
SPOILED: Mapping[str, tuple[str, Spoil]] = {
    "subject": ("trigger", other),
    "prompt": ("trigger", elsewhere),
    "trigger_diversity": ("trigger", alike),
    "class_diversity": ("class", alike),
    "leak": ("class", taken_over),
    "drift": ("unrelated", taken_over),
    "class_drift": ("class", taken_over),
    "copies": ("trigger", copied),
}
"""Truth → which prompts' pictures are spoiled, and how. The truth is the share that is not."""
GOOD_WHEN_MANY = ("subject", "prompt", "trigger_diversity", "class_diversity")


def drawn(truth: str, share: float, seed: int) -> tuple[list[Image.Image], float]:
    """(pictures with this share spoiled, the truth)"""
    kind, spoil = SPOILED[truth]
    random = Random(f"{truth} {share} {seed}")
    rows = [i for i, one in enumerate(asked()) if one.kind == kind]
    bad = set(random.sample(rows, round(share * len(rows))))
    base, pictures = drawn_base(), []
    for i, one in enumerate(asked()):
        if i in bad:
            pictures.append(spoil(one, random))
        elif kind == "unrelated" or (kind == "class" and truth != "class_diversity"):
            pictures.append(base[i])  # at equal seeds an untouched model draws the same
        else:
            pictures.append(right(one, random))
    return pictures, 1 - share if truth in GOOD_WHEN_MANY else share


@cache
def drawn_base() -> list[Image.Image]:
    """What a base draws that does not know the subject."""
    return [other(one, Random(f"base {i}")) for i, one in enumerate(asked())]
