"""The judges are judged: do the figures rank LoRAs, and drawn sets, as the truth does?

    python -m workbench.miniature.trial [--only TRIAL] [--spoiled FOLDER] [--out FILE]

    drawn     sets of drawn pictures in which a known share is wrong (the subject is missing, in the class,
              copied from training pictures, …): the truth is exact
    harmless  drawn sets that are right and merely others than the base's: what a drift must pass over
    learned   the LoRAs of docs/learning.md: their pictures there, and the truth of learning.json
    spoiled   the LoRAs of spoiled.py, which are made to fail; the truth is the classifier of judge.py

The judge in all is `seer.py`, which knows nothing of the subject; it answers the questions too. Writes
trial.json beside this file and, from that, the tables of docs/evidence.md (`trial_page.py`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from scipy.stats import kendalltau, spearmanr

from .. import ROOT
from . import judge, spoiled, subject, trial_page, world
from .looking import SeerAnswerer, SeerJudge, logits
from .trial_sets import (
    SPOILED,
    Asked,
    asked,
    drawn,
    drawn_base,
    other,
    references,
    right,
    taken_over,
    trained,
)

OUT = Path(__file__).parent / "trial.json"
INCEPTION = "is"
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SETS = 2
"""Drawn anew for each share."""
RESAMPLES = 1000

FOLLOWS = {
    "subject": "subject",
    "prompt": "prompt",
    "answers": "prompt",
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
    INCEPTION: "unrelated_right",
}
"""Figure → the truth that it has to follow."""


def figures(
    pictures: Sequence[Image.Image],
    base: Sequence[Image.Image],
    *,
    shots: Sequence[Asked] | None = None,
    count: int = spoiled.PICTURES,
    fid: bool = True,
) -> dict[str, float]:
    """By the engine. shots: what was asked for; None is `asked`. count: how many pictures were trained on."""
    from in_graph_lora.trainer.evidence import questions
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
    own_figures = {**found.figures, **questions.figures(answers(pictures, shots))}
    return {key: measured.value for key, measured in own_figures.items()}


def answers(pictures: Sequence[Image.Image], shots: Sequence[Asked]) -> list[list[str]]:
    """To the questions that are asked by default: about each part of a prompt with the trigger."""
    from in_graph_lora.trainer.evidence.questions import questions

    own = SeerAnswerer()
    return [
        [own.answer(picture, question) for question in questions(one.prompt, (), subject.NAME)]
        for picture, one in zip(pictures, shots, strict=True)
        if one.kind == "trigger"
    ]


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
    return {**found, INCEPTION: inception_trial()}


def inception_trial() -> dict[str, Any]:
    """Pictures of unrelated prompts, more than in the other sets, of which a share became the subject: the
    inception score has to fall with it. It needs 20."""
    from in_graph_lora.trainer.evidence.spread import inception_score

    shots = [
        replace(one, seed=i)
        for one in asked()
        if one.kind == "unrelated"
        for i in range(spoiled.FOR_INCEPTION)
    ]
    values, truth = [], []
    for share in SHARES:
        for seed in range(SETS):
            random = Random(f"inception {share} {seed}")
            bad = set(random.sample(range(len(shots)), round(share * len(shots))))
            pictures = [taken_over(o, random) if i in bad else other(o, random) for i, o in enumerate(shots)]
            values.append(inception_score(logits(pictures))[INCEPTION].value)
            truth.append(1 - share)
    found = correlation(values, truth)
    print(f"{INCEPTION:16} {found}", flush=True)
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
    add_inception(rows, folder)
    return {"rows": rows, "ranked": ranked(rows)}


def add_inception(rows: Mapping[str, Any], folder: Path) -> None:
    """The inception score of each LoRA over its unrelated pictures, and how many of these are right."""
    from in_graph_lora.trainer.evidence.spread import inception_score

    for name, row in rows.items():
        files = sorted(spoiled.unrelated_folder(folder, name).glob("*.png"))
        if not files:
            continue
        pictures = [Image.open(path).convert("RGB") for path in files]
        labels = judge.opinions(judge.load_judge(), judge.as_tensor(pictures))
        right_ones = [
            (seen["place"], seen["colour"]) == (scene.place, scene.colour)
            for (_, scene), seen in zip(spoiled.unrelated(), labels, strict=True)
        ]
        row["figures"][INCEPTION] = inception_score(logits(pictures))[INCEPTION].value
        row["truth"][FOLLOWS[INCEPTION]] = sum(right_ones) / len(right_ones)


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold the figures of Evaluate LoRA against the truth.")
    parser.add_argument("--spoiled", type=Path, default=spoiled.WORK, help="what spoiled.py made")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--only",
        choices=("drawn", "harmless", "learned", "spoiled", "inception"),
        help="leave the others as they are; inception: of the spoiled LoRAs",
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
    if args.only == "inception":
        rows = found["spoiled"]["rows"]
        add_inception(rows, args.spoiled)
        found["spoiled"]["ranked"] = ranked(rows)
    else:
        for name in [args.only] if args.only else trials:
            found[name] = trials[name]()
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.out == OUT:
        trial_page.write(found)


if __name__ == "__main__":
    main()
