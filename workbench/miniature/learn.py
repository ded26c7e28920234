"""The learning table: what is learned of the subject with few and many pictures, by us and by others.

    python -m workbench.miniature.learn --comfyui FOLDER [--rows base ours-15] [--steps 300] [--count 40]

prints one row after another and writes figures to learning.json beside this file, some pictures of each row
to docs/learning/. Rows that are there from the same weights and settings stay. Two to five minutes a row on
two cores, ten or more with the text encoder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import ROOT

OUT = Path(__file__).parent / "learning.json"
RANK, BATCH = 16, 4
RATE, CORE_RATE, TEXT_RATE, LOKR_RATE = 3e-3, 5e-4, 1e-4, 3e-2
TARGETS = "attention+feed-forward"

HEADINGS = (
    "trained", "subject", "place", "object", "class right", "class taken for subject", "diversity", "CPU s",
)  # fmt: skip
SHOWN_IDENTIFIER, SHOWN_PLAIN = 6, 3

Loaded = tuple[Any, Any, Any]
"""Model, CLIP, VAE."""


@dataclass(frozen=True)
class Row:
    title: str
    train: Callable[[Loaded, Path], Loaded]
    """(loaded, folder for pictures) → loaded with the LoRA on it."""


def rows(steps: int) -> dict[str, Row]:
    from in_graph_lora.trainer.config import AdapterConfig, OptimizerConfig

    from . import experiment, subject

    def ours(
        title: str,
        count: int = 15,
        *,
        kind: str = "lora",
        class_count: int = subject.CLASS_COUNT,
        rate: float = RATE,
        text_rate: float = 0,
    ) -> Row:
        def train(loaded: Loaded, folder: Path) -> Loaded:
            pictures, classes = experiment.write_pictures(folder, count, class_count)
            lora = experiment.train_ours(
                loaded,
                pictures,
                classes if class_count else None,
                f"{kind}-{count}",
                steps=steps,
                batch_size=BATCH,
                adapter=AdapterConfig(kind=kind, rank=RANK, targets=TARGETS),
                optimizer=OptimizerConfig(learning_rate=rate, text_encoder_lr=text_rate),
            )
            return experiment.with_ours(loaded, lora)

        return Row(title, train)

    def core(title: str, rate: float) -> Row:
        def train(loaded: Loaded, folder: Path) -> Loaded:
            pictures, _ = experiment.write_pictures(folder, 15, 0)
            lora = experiment.train_core(loaded, pictures, steps, RANK, BATCH, learning_rate=rate)
            return experiment.with_stock(loaded, lora)

        return Row(title, train)

    return {
        "base": Row("nothing: the base", lambda loaded, folder: loaded),
        "ours-5": ours("Train LoRA, 5 pictures", 5),
        "ours-15": ours("Train LoRA, 15 pictures"),
        "ours-25": ours("Train LoRA, 25 pictures", 25),
        "ours-15-class-50": ours("Train LoRA, 15, 50 class pictures", class_count=50),
        "ours-15-no-prior": ours("Train LoRA, 15, no class pictures", class_count=0),
        "core-15": core(f"ComfyUI's TrainLoraNode, 15, its rate {CORE_RATE:g}", CORE_RATE),
        "core-15-same-rate": core(f"ComfyUI's TrainLoraNode, 15, our rate {RATE:g}", RATE),
        "ours-15-text-encoder": ours("Train LoRA, 15, text encoder too", text_rate=TEXT_RATE),
        "ours-15-dora": ours("Train LoRA, 15, DoRA", kind="dora"),
        "ours-15-lokr": ours("Train LoRA, 15, LoKr", kind="lokr"),
        "ours-15-lokr-fast": ours(f"Train LoRA, 15, LoKr at {LOKR_RATE:g}", kind="lokr", rate=LOKR_RATE),
    }


def run(
    chosen: Mapping[str, Row], count: int, checkpoint: Path, folder: Path, done: Callable[..., None]
) -> None:
    """done: is told each row's name, what was learned, some of the pictures, and the CPU time of training."""
    from . import experiment, sampling

    prompts = experiment.Prompts.make(count)
    for name, row in chosen.items():
        loaded = sampling.load_checkpoint(checkpoint)  # anew: no row may leave anything to the next one
        started = time.process_time()
        trained = row.train(loaded, folder / name)
        seconds = time.process_time() - started
        drawn = experiment.draw(trained, prompts)
        pictures = [*drawn.identifier[:SHOWN_IDENTIFIER], *drawn.plain[:SHOWN_PLAIN]]
        done(name, experiment.measure(drawn, prompts), pictures, seconds)


def table(result: Mapping[str, Any]) -> str:
    """The rows of learning.json in Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    lines += [markdown_row(row) for row in result["rows"].values()]
    return "\n".join(lines)


def markdown_row(row: Mapping[str, Any]) -> str:
    shares = [f"{100 * row[n]:.0f} %" for n in ("subject", "place", "held", "class_right", "class_leak")]
    return f"| {row['title']} | {' | '.join(shares)} | {row['diversity']:.2f} | {row['cpu_seconds']:.0f} |"


def begun(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of an earlier run, if it had the same settings and weights."""
    before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    same = {name: before.get(name) for name in settings} == settings
    return before["rows"] if same else {}


def digest(weights: Path) -> str:
    """Of network and autoencoder, short."""
    files = [weights / f"{name}.safetensors" for name in ("network", "autoencoder")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what LoRAs learn of the miniature's subject.")
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    parser.add_argument("--rows", nargs="+", help="some of the rows; default: all")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=40, help="prompts of class and plain each")
    parser.add_argument("--weights", type=Path, help="folder of other weights than the stored ones")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    import torch

    from ..dev import host

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as base:
        host.import_comfyui(args.comfyui.resolve(), Path(base))
        host.register_pack()
        from . import checkpoint, sampling

        weights = args.weights or checkpoint.WEIGHTS
        known = rows(args.steps)
        if unknown := set(args.rows or ()) - set(known):
            parser.error(f"no row {' or '.join(sorted(unknown))}; choose from {', '.join(known)}")
        path = checkpoint.write_checkpoint(Path(base) / "base.safetensors", weights)
        settings = {"steps": args.steps, "prompts": args.count, "weights": digest(weights)}
        found = begun(args.out, settings)
        pictures_folder = ROOT / "docs" / "learning" if args.out == OUT else args.out.with_suffix("")
        pictures_folder.mkdir(exist_ok=True)

        def done(name: str, learned: Any, pictures: list[Any], seconds: float) -> None:
            found[name] = {"title": known[name].title, **asdict(learned), "cpu_seconds": round(seconds, 1)}
            print(markdown_row(found[name]), flush=True)
            result = {**settings, "rows": {name: found[name] for name in known if name in found}}
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            strip = sampling.contact_sheet(torch.stack(pictures), len(pictures))
            strip.save(pictures_folder / f"{name}.jpg", quality=88, optimize=True)

        chosen = {name: known[name] for name in args.rows or known}
        run(chosen, args.count, path, Path(base), done)


if __name__ == "__main__":
    sys.exit(main())
