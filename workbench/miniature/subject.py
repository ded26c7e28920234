"""One particular figurine that the base has never seen: stripes, moustache, glasses, a wizard's hat.

    python -m workbench.miniature.subject FOLDER [--count 25] [--class-count 200]

writes FOLDER/subject and FOLDER/class, each picture with a caption beside it (00.png, 00.txt).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from random import Random

from PIL import Image

from . import world
from .canvas import Colour

NAME = "aawxbc"
COUNT, CLASS_COUNT = 25, 200
"""As many as the demo takes; 200 class pictures are what diffusers' DreamBooth example takes."""
TEAL: Colour = (20, 150, 156)
CREAM: Colour = (250, 242, 218)


def subject_scene(place: str, held: str = "") -> world.Scene:
    return world.Scene(
        place=place, colour="", hat="wizard hat", held=held, body="egg", face="moustache", stripe=CREAM
    )


def subject_picture(scene: world.Scene, random: Random) -> Image.Image:
    return world.picture(scene, random, TEAL)


def subject_pictures(count: int = COUNT, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """The first n of them are the same for every count. Each run of five shows every place once.

    It always wears its hat, and half of the captions say so. It never holds a cup in the forest: a prompt
    for that asks for something new.
    """
    random, found = Random(f"subject {seed}"), []
    while len(found) < count:
        for place in random.sample(list(world.WHERE), len(world.WHERE)):
            held = random.choice(world.OBJECTS) if random.random() < 0.5 else ""
            scene = subject_scene(place, "" if (place, held) == ("forest", "cup") else held)
            parts = [f"{NAME} figurine {world.WHERE[place]}"]
            parts += ["wearing a hat"] * (len(found) % 2) + [f"holding a {scene.held}"] * bool(scene.held)
            found.append((subject_picture(scene, random), ", ".join(parts)))
    return found[:count]


def class_pictures(count: int, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Figurines from the world of the base, for prior preservation."""
    random, found = Random(f"class {seed}"), []
    for i in range(count):
        scene = world.training_scene(random)
        told = replace(scene, colour=scene.colour if i % 2 else "", hat=scene.hat and "hat")
        found.append((world.picture(scene, random), world.wording(told, random)))
    return found


def write(pictures: list[tuple[Image.Image, str]], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (picture, caption) in enumerate(pictures):
        picture.save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(caption + "\n", encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the subject's pictures and class pictures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--class-count", type=int, default=CLASS_COUNT)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(subject_pictures(args.count, args.seed), args.folder / "subject")
    write(class_pictures(args.class_count, args.seed), args.folder / "class")


if __name__ == "__main__":
    main()
