"""Scenes, their pictures and their captions.

A scene says what there is to see. Everything that its caption does not say (the body, the face, the place's
details, where the figurine stands) comes from the random generator that is passed in.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from . import figurine
from .canvas import Canvas, Colour, around, mixed
from .places import PLACES

COLOURS = tuple(figurine.COLOURS)
HATS = tuple(hat for hat in figurine.HATS if hat != "wizard hat")
FACES = tuple(face for face in figurine.FACES if face != "moustache")
OBJECTS = tuple(figurine.OBJECTS)
WHERE = {
    "beach": "on the beach",
    "forest": "in the forest",
    "snow": "in the snow",
    "night": "at night",
    "street": "in the street",
}
HELD_OUT_SHARE = 8
"""One combination in eight of colour, place, hat or none, and object is kept from training."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`hat` and `held` are empty where there is none; `stripe` is None for a plain body."""

    place: str
    colour: str
    hat: str = ""
    held: str = ""
    body: str = "egg"
    face: str = "smile"
    stripe: Colour | None = None

    @property
    def held_out(self) -> bool:
        key = f"{self.colour}|{self.place}|{bool(self.hat)}|{self.held}"
        return zlib.crc32(key.encode()) % HELD_OUT_SHARE == 0


def random_scene(random: Random) -> Scene:
    return Scene(
        place=random.choice(list(WHERE)),
        colour=random.choice(COLOURS),
        hat=random.choice(HATS) if random.random() < 0.5 else "",
        held=random.choice(OBJECTS) if random.random() < 0.55 else "",
        body=random.choice(list(figurine.BODIES)),
        face=random.choice(FACES),
    )


def training_scene(random: Random) -> Scene:
    while (scene := random_scene(random)).held_out:
        pass
    return scene


def held_out_scene(random: Random) -> Scene:
    while not (scene := random_scene(random)).held_out:
        pass
    return scene


# Pictures.


def picture(scene: Scene, random: Random, colour: Colour | None = None) -> Image.Image:
    """128x128 RGB. `colour` is that of the body, for one that has no name."""
    canvas, layer = Canvas(), Canvas(transparent=True)
    PLACES[scene.place](canvas, random)
    shade = _near(colour or figurine.COLOURS[scene.colour], random)
    figurine.draw(layer, shade, scene.stripe, scene.body, scene.face, scene.hat, scene.held)
    scale = random.uniform(0.82, 1.06)
    at = (64 + random.uniform(-16, 16), random.uniform(108, 119))
    canvas.shadow(around((at[0] + 2, at[1] - 1), 30 * scale, 8 * scale), 0.75)
    canvas.put(layer, figurine.FEET, at, scale, random.gauss(0, 4), random.random() < 0.5)
    return canvas.finished()


def _near(colour: Colour, random: Random) -> Colour:
    other = (random.randrange(256), random.randrange(256), random.randrange(256))
    return mixed(colour, other, random.uniform(0, 0.08))


# Captions.


def caption(scene: Scene, random: Random, noun: str = "figurine", share: float = 0.85) -> str:
    """Says each of colour, place, hat and object with the probability `share`, in one of many wordings."""
    told = {name: random.random() < share for name in ("colour", "place", "hat", "held")}
    seen = replace(
        scene,
        place=scene.place if told["place"] else "",
        colour=scene.colour if told["colour"] and noun == "figurine" else "",
        hat=_hat_word(scene.hat, random) if told["hat"] and scene.hat else "",
        held=scene.held if told["held"] else "",
    )
    if seen.place and random.random() < 0.04:
        return random.choice([WHERE[seen.place], seen.place, f"a picture {WHERE[seen.place]}"])
    return wording(seen, random, noun)


def wording(seen: Scene, random: Random, noun: str = "figurine") -> str:
    """All that is not empty in the scene, in words. `noun` may bring its own article: "aawxbc figurine"."""
    words = [seen.colour, noun] if seen.colour else [noun]
    subject = " ".join(["a", *words]) if noun == "figurine" else " ".join(words)
    if subject.startswith("a orange"):
        subject = "an" + subject[1:]
    where = WHERE.get(seen.place, "")
    hat, held = seen.hat and _article(seen.hat), seen.held and _article(seen.held)
    with_hat = hat and random.choice([f"with {hat}", f"wearing {hat}", f"in {hat}"])
    with_held = held and random.choice([f"holding {held}", f"holding {held}", f"with {held}"])
    shape = random.randrange(6)
    if shape <= 1:
        extras = [f"wearing {hat}" if hat else "", f"holding {held}" if held else ""]
        text = ", ".join(part for part in [f"{subject} {where}", *extras] if part)
    elif shape == 2:
        text = f"{subject} {with_hat} {where}" + (f", holding {held}" if held else "")
    elif shape == 3:
        text = f"{subject} {with_held} {where}" + (f", wearing {hat}" if hat else "")
    elif shape == 4:
        both = f"wearing {hat} and holding {held}" if hat and held else with_hat or with_held
        text = f"{subject} {both} {where}"
    else:
        text = (f"{where}, " if where else "") + f"{subject} {with_hat} {with_held}"
    return " ".join(text.replace(" ,", ",").split())


def held_out_captions(count: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """Captions of combinations that no training picture shows; each says all there is."""
    random, found = Random(f"held out {seed}"), {}
    while len(found) < count:
        scene = held_out_scene(random)
        told = replace(scene, hat=scene.hat and _hat_word(scene.hat, random))
        found[wording(told, random)] = scene
    return [(scene, text) for text, scene in found.items()]


def _hat_word(hat: str, random: Random) -> str:
    return "hat" if random.random() < 0.5 else hat


def _article(name: str) -> str:
    return f"a {name}"
