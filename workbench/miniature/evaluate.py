"""Does the base draw what is asked for? Captions of combinations that it never saw, judged by the classifier.

python -m workbench.miniature.evaluate --comfyui FOLDER [--count 200] [--sheet sheet.png]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..dev.host import import_comfyui

if TYPE_CHECKING:
    from .judge import Labels
    from .world import Scene


def shares(asked: Sequence[Scene], seen: Sequence[Labels]) -> dict[str, float]:
    """Share of pictures with the right place, colour, both, hat or none, object, and all of these."""
    pairs = list(zip(asked, seen, strict=True))
    right = {
        "place": [scene.place == labels["place"] for scene, labels in pairs],
        "colour": [scene.colour == labels["colour"] for scene, labels in pairs],
        "hat": [bool(scene.hat) == bool(labels["hat"]) for scene, labels in pairs],
        "object": [scene.held == labels["held"] for scene, labels in pairs],
        "the subject": [labels["subject"] == "yes" for _, labels in pairs],
    }
    right["place and colour"] = [a and b for a, b in zip(right["place"], right["colour"], strict=True)]
    right["all four"] = [
        all(right[n][i] for n in ("place", "colour", "hat", "object")) for i in range(len(pairs))
    ]
    return {name: sum(values) / len(values) for name, values in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the base model on captions it has never seen.")
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    parser.add_argument("--weights", type=Path, help="folder of other weights than the stored ones")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="where to put the first pictures")
    args = parser.parse_args()
    import_comfyui(args.comfyui.resolve())
    from . import checkpoint, judge, sampling, world

    asked = world.held_out_captions(args.count)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.write_checkpoint(
            Path(folder) / "base.safetensors", args.weights or checkpoint.WEIGHTS
        )
        loaded = sampling.load_checkpoint(path)
        started = time.monotonic()
        prompts = [text for _, text in asked]
        pictures = sampling.sample(*loaded, prompts, steps=args.steps, cfg=args.cfg, seed=args.seed)
    seconds = time.monotonic() - started
    seen = judge.opinions(judge.load_judge(), pictures)
    print(f"{len(asked)} pictures in {seconds:.0f} s, {args.steps} steps, cfg {args.cfg}")
    for name, share in shares([scene for scene, _ in asked], seen).items():
        print(f"{name:>18}  {share:6.1%}")
    if args.sheet:
        sampling.contact_sheet(pictures[:40], 8).save(args.sheet)
        for i in range(0, 40, 8):
            print(" | ".join(prompts[i : i + 8]))


if __name__ == "__main__":
    main()
