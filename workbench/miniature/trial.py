"""The judges are judged: do the figures rank LoRAs, and drawn sets, as the truth does?

    python -m workbench.miniature.trial [--only TRIAL] [--spoiled FOLDER] [--out FILE]

    drawn     sets of drawn pictures in which a known share is wrong (the subject is missing, in the class,
              copied from training pictures, …): the truth is exact
    harmless  drawn sets that are right and merely others than the base's: what a drift must pass over
    learned   the LoRAs of docs/learning.md: their pictures there, and the truth of learning.json
    spoiled   the LoRAs of spoiled.py, which are made to fail; the truth is the classifier of judge.py

The judge in all is `seer.py`, which knows nothing of the subject. Writes trial.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image, ImageFilter
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

from .. import ROOT
from . import judge, seer, spoiled, subject, world

OUT = Path(__file__).parent / "trial.json"
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SETS = 2
"""Drawn anew for each share."""
RESAMPLES = 1000

FOLLOWS = {
    "subject": "subject",
    "prompt": "prompt",
    "diversity": "trigger_diversity",
    "class_diversity": "class_diversity",
    "leak": "leak",
    "drift": "drift",
    "class_drift": "class_drift",
    "kid": "drift",
    "fid": "drift",
    "copies": "copies",
    "pixel_copies": "copies",
    "pixel_drift": "drift",
    "pixel_diversity": "class_diversity",
    "loss": "missing",
}
"""Figure → the truth that it has to follow."""


class SeerJudge:
    """The miniature's CLIP as the engine's `Judge`."""

    name, digest, reads = "seer", "miniature", True

    @torch.inference_mode()
    def see(self, pictures: Sequence[Image.Image]) -> Tensor:
        return seer.load_seer().pictures(judge.as_tensor([p.convert("RGB") for p in pictures]))

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        return seer.load_seer().texts(texts)


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


# Drawn sets.


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


# Measuring.


def figures(
    pictures: Sequence[Image.Image],
    base: Sequence[Image.Image],
    *,
    shots: Sequence[Asked] | None = None,
    count: int = spoiled.PICTURES,
    fid: bool = True,
) -> dict[str, float]:
    """By the engine. shots: what was asked for; None is `asked`. count: how many pictures were trained on."""
    from in_graph_lora.trainer.evidence.known import Known
    from in_graph_lora.trainer.evidence.measure import measure
    from in_graph_lora.trainer.evidence.shots import Shot
    from in_graph_lora.trainer.evidence.sight import checked, look

    def sight(images: Sequence[Image.Image]) -> Any:
        return look(SeerJudge(), [image.copy for image in images], "pictures")

    own, shots = SeerJudge(), asked() if shots is None else shots
    kept = trained(count)
    known = Known(
        references=sight(references()),
        trained=sight(kept),
        trained_names=[f"p{i:02}" for i in range(len(kept))],
        texts=checked(own, own.read([one.prompt.replace(f"{subject.NAME} ", "a ") for one in shots]), ""),
    )
    wanted: Any = [Shot(kind=one.kind, prompt=one.prompt, seed=one.seed) for one in shots]  # type: ignore[arg-type]
    found = measure(wanted, sight(base), sight(pictures), known, fid=fid)
    return {key: measured.value for key, measured in found.figures.items()}


def truth_of(pictures: Sequence[Image.Image]) -> dict[str, float]:
    """What the classifier sees. Copies have no truth here."""
    labels = judge.opinions(judge.load_judge(), judge.as_tensor(list(pictures)))
    pairs = list(zip(asked(), labels, strict=True))

    def share(kind: str, good: Callable[[Asked, judge.Labels], bool]) -> float:
        values = [good(one, seen) for one, seen in pairs if one.kind == kind]
        return sum(values) / len(values)

    def is_subject(one: Asked, seen: judge.Labels) -> bool:
        return seen["subject"] == "yes"

    def as_asked(one: Asked, seen: judge.Labels) -> bool:
        return (seen["place"], seen["colour"]) == (one.scene.place, one.scene.colour)

    colours = Counter(seen["colour"] for one, seen in pairs if one.kind == "class")
    total = sum(colours.values())
    return {
        "subject": share("trigger", is_subject),
        "missing": 1 - share("trigger", is_subject),
        "prompt": share("trigger", lambda o, s: s["place"] == o.scene.place) / 2
        + share("trigger", lambda o, s: s["held"] == o.scene.held) / 2,
        "class_diversity": sum(n / total * math.log(total / n) for n in colours.values()),
        "leak": share("class", is_subject),
        "drift": 1 - share("unrelated", as_asked),
        "class_drift": 1 - share("class", lambda o, s: s["place"] == o.scene.place and not is_subject(o, s)),
    }


def correlation(values: Sequence[float], truth: Sequence[float]) -> dict[str, Any]:
    """Spearman's ρ with a bootstrap interval over the sets, and Kendall's τ."""
    generator = torch.Generator().manual_seed(0)
    rho = []
    for _ in range(RESAMPLES):
        rows = torch.randint(len(values), (len(values),), generator=generator).tolist()
        some, same = [values[i] for i in rows], [truth[i] for i in rows]
        if len(set(some)) > 1 and len(set(same)) > 1:
            rho.append(float(spearmanr(some, same).statistic))
    rho.sort()
    flat = len(set(values)) < 2 or len(set(truth)) < 2
    return {
        "rho": None if flat else round(float(spearmanr(values, truth).statistic), 3),
        "interval": None
        if not rho
        else [round(rho[int(0.025 * len(rho))], 3), round(rho[int(0.975 * len(rho))], 3)],
        "tau": None if flat else round(float(kendalltau(values, truth).statistic), 3),
        "sets": len(values),
    }


def drawn_trial() -> dict[str, Any]:
    """Each figure over sets in which its own truth is spoiled by degrees."""
    found: dict[str, Any] = {}
    for truth in SPOILED:
        rows = []
        for share in SHARES:
            for seed in range(SETS):
                pictures, value = drawn(truth, share, seed)
                rows.append((figures(pictures, drawn_base()), value))
        for key, own in FOLLOWS.items():
            if own == truth:
                found[key] = correlation([row[key] for row, _ in rows], [value for _, value in rows])
                print(f"{key:16} {found[key]}", flush=True)
    return found


def harmless_trial() -> dict[str, Any]:
    """What each figure of drift says of pictures that are as right as the base's and merely others, and of
    pictures that all became the subject. Means over SETS sets."""
    found: dict[str, Any] = {}
    for key in [key for key, truth in FOLLOWS.items() if truth in ("drift", "class_drift")]:
        found[key] = {"harmless": 0.0, "spoiled": 0.0}
    for seed in range(SETS):
        random = Random(f"harmless {seed}")
        others = [right(one, random) for one in asked()]
        harmless = figures(others, drawn_base())
        for key, values in found.items():
            spoiled_ones, _ = drawn(FOLLOWS[key], 1.0, seed)
            values["harmless"] += harmless[key] / SETS
            values["spoiled"] += figures(spoiled_ones, drawn_base())[key] / SETS
    print(json.dumps(found))
    return {key: {name: round(v, 3) for name, v in values.items()} for key, values in found.items()}


def learned_trial() -> dict[str, Any]:
    """Each figure over the pictures of docs/learning, nine a LoRA, against learning.json's truth of 80 and 40
    prompts each: real LoRAs, of which some learned nothing, or too much."""
    from . import experiment, learn

    prompts = experiment.Prompts.make(40)
    named = prompts.identifier[: learn.SHOWN_IDENTIFIER]
    shots = [Asked("trigger", text, scene, i) for i, (scene, text) in enumerate(named)]
    plain = world.Scene(place="", colour="")
    shots += [Asked("class", text, plain, i) for i, text in enumerate(prompts.plain[: learn.SHOWN_PLAIN])]

    def strip(name: str) -> list[Image.Image]:
        with Image.open(ROOT / "docs" / "learning" / f"{name}.jpg") as sheet:
            return [sheet.crop((130 * i, 0, 130 * i + 128, 128)).convert("RGB") for i in range(len(shots))]

    rows = {}
    for name, row in json.loads(learn.OUT.read_text(encoding="utf-8"))["rows"].items():
        count = int(next((part for part in name.split("-") if part.isdigit()), spoiled.PICTURES))
        rows[name] = {
            "title": row["title"],
            "figures": figures(strip(name), strip("base"), shots=shots, count=count, fid=False),
            "truth": {
                "subject": row["subject"],
                "prompt": row["held"],
                "leak": row["class_leak"],
                "class_drift": 1 - row["class_right"],
            },
        }
    return {"rows": rows, "ranked": ranked(rows)}


def spoiled_trial(folder: Path) -> dict[str, Any]:
    """Each figure over the LoRAs whose pictures are there, against what the classifier sees in them."""

    def pictures(name: str) -> list[Image.Image]:
        return [Image.open(path).convert("RGB") for path in sorted((folder / name).glob("*.png"))]

    rows = {}
    for name in [name for name in spoiled.TITLES if (folder / name).is_dir()]:
        own = pictures(name)
        count = spoiled.FEW_PICTURES if name in spoiled.OF_FIVE else spoiled.PICTURES
        losses = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["held_out_loss"]
        rows[name] = {
            "title": spoiled.TITLES[name],
            "figures": {**figures(own, pictures("base"), count=count), "loss": sum(losses) / len(losses)},
            "truth": truth_of(own),
        }
    return {"rows": rows, "ranked": ranked(rows)}


def ranked(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Of each figure over the LoRAs, without the base."""
    loras = [row for name, row in rows.items() if name != "base"]
    found = {}
    for key, own in FOLLOWS.items():
        if loras and all(key in row["figures"] and own in row["truth"] for row in loras):
            values, truth = [row["figures"][key] for row in loras], [row["truth"][own] for row in loras]
            found[key] = correlation(values, truth)
            print(f"{key:16} {found[key]}", flush=True)
    return found


def table(found: Mapping[str, Any]) -> str:
    """Of docs/evidence.md: for each figure the rank correlation with its truth in each trial that was run."""
    from in_graph_lora.trainer.evidence.figures import FIGURES

    def cell(trial: str, key: str) -> str:
        own = found.get(trial, {})
        own = own.get(key) if trial == "drawn" else own.get("ranked", {}).get(key)
        if own is None or own["rho"] is None:
            return "–"
        return f"{own['rho']:.2f} ({own['interval'][0]:.2f} to {own['interval'][1]:.2f})"

    heads = (
        "figure",
        "in the literature",
        "drawn sets",
        "LoRAs",
        "spoiled LoRAs",
        "harmless / spoiled",
        "shown",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for figure in FIGURES:
        trials = [cell(name, figure.key) for name in ("drawn", "learned", "spoiled")]
        own = found["harmless"].get(figure.key)
        cells = [figure.title, figure.literature, *trials]
        cells.append(f"{own['harmless']:.2f} / {own['spoiled']:.2f}" if own else "–")
        lines.append("| " + " | ".join([*cells, "yes" if figure.shown else "on request"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold the figures of Evaluate LoRA against the truth.")
    parser.add_argument("--spoiled", type=Path, default=spoiled.WORK, help="what spoiled.py made")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--only", choices=("drawn", "harmless", "learned", "spoiled"), help="leave the others as they are"
    )
    args = parser.parse_args()
    from ..dev import host

    host.register_pack()
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    trials = {
        "drawn": drawn_trial,
        "harmless": harmless_trial,
        "learned": learned_trial,
        "spoiled": lambda: spoiled_trial(args.spoiled),
    }
    for name in [args.only] if args.only else trials:
        found[name] = trials[name]()
    print(table(found))
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
