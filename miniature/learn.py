"""The learning table: what is learned of the subject with few and many pictures, by us and by others.

    python -m miniature.learn --comfyui FOLDER [--rows base ours-15 core-15] [--steps 300] [--count 50]

prints one row after another and writes them beside this file (learning.json), with some of the pictures
(learning.jpg). Two to five minutes a row on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RANK, BATCH, CLASS_PICTURES = 16, 4, 50
RATE, CORE_RATE, TEXT_RATE = 3e-3, 5e-4, 1e-4
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

    from . import experiment

    def ours(title: str, count: int = 15, *, kind: str = "lora", prior: bool = True, text: float = 0) -> Row:
        def train(loaded: Loaded, folder: Path) -> Loaded:
            pictures, classes = experiment.write_pictures(folder, count, CLASS_PICTURES)
            lora = experiment.train_ours(
                loaded,
                pictures,
                classes if prior else None,
                f"{kind}-{count}",
                steps=steps,
                batch_size=BATCH,
                adapter=AdapterConfig(kind=kind, rank=RANK, targets=TARGETS),
                optimizer=OptimizerConfig(learning_rate=RATE, text_encoder_lr=text),
            )
            return experiment.with_ours(loaded, lora)

        return Row(title, train)

    def core(title: str, rate: float) -> Row:
        def train(loaded: Loaded, folder: Path) -> Loaded:
            pictures, _ = experiment.write_pictures(folder, 15, CLASS_PICTURES)
            lora = experiment.train_core(loaded, pictures, steps, RANK, BATCH, learning_rate=rate)
            return experiment.with_stock(loaded, lora)

        return Row(title, train)

    return {
        "base": Row("nothing: the base", lambda loaded, folder: loaded),
        "ours-5": ours("Train LoRA, 5 pictures", 5),
        "ours-15": ours("Train LoRA, 15 pictures"),
        "ours-25": ours("Train LoRA, 25 pictures", 25),
        "ours-15-no-prior": ours("Train LoRA, 15, no class pictures", prior=False),
        "core-15": core(f"ComfyUI's TrainLoraNode, 15, its rate {CORE_RATE:g}", CORE_RATE),
        "core-15-same-rate": core(f"ComfyUI's TrainLoraNode, 15, our rate {RATE:g}", RATE),
        "ours-15-text-encoder": ours("Train LoRA, 15, text encoder too", text=TEXT_RATE),
        "ours-15-dora": ours("Train LoRA, 15, DoRA", kind="dora"),
        "ours-15-lokr": ours("Train LoRA, 15, LoKr", kind="lokr"),
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


def sheet(found: Mapping[str, list[Any]], titles: Mapping[str, str]) -> Any:
    """A row of pictures for each trained LoRA, of the same prompts and noise."""
    from in_graph_lora.trainer.drawing import labelled_grid

    from . import experiment, sampling

    prompts = experiment.Prompts.make(SHOWN_IDENTIFIER)
    columns = [f"{scene.place}, {scene.held}".strip(", ") for scene, _ in prompts.identifier]
    columns += [f"{text.split()[-1]} (class)" for text in prompts.plain[:SHOWN_PLAIN]]
    images = {name: [sampling.as_image(picture) for picture in pictures] for name, pictures in found.items()}
    return labelled_grid(columns, [(titles[name], row) for name, row in images.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what LoRAs learn of the miniature's subject.")
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    parser.add_argument("--rows", nargs="+", help="some of the rows; default: all")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=50, help="prompts of each kind")
    parser.add_argument("--weights", type=Path, help="folder of other weights than the stored ones")
    parser.add_argument("--out", type=Path, default=HERE / "learning.json")
    args = parser.parse_args()
    import demo  # noqa: F401  # found now, and by its submodules when the root has left sys.path
    from devtools import host

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as base:
        host.import_comfyui(args.comfyui.resolve(), Path(base))
        host.register_pack()
        from . import checkpoint

        path = checkpoint.write_checkpoint(
            Path(base) / "base.safetensors", args.weights or checkpoint.WEIGHTS
        )
        known = rows(args.steps)
        chosen = {name: known[name] for name in args.rows or known}
        titles = {name: row.title for name, row in chosen.items()}
        found: dict[str, Mapping[str, Any]] = {}
        shown: dict[str, list[Any]] = {}

        def done(name: str, learned: Any, pictures: list[Any], seconds: float) -> None:
            found[name] = {"title": titles[name], **asdict(learned), "cpu_seconds": round(seconds, 1)}
            shown[name] = pictures
            print(markdown_row(found[name]), flush=True)
            result = {"steps": args.steps, "prompts": args.count, "rows": found}
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            sheet(shown, titles).save(args.out.with_suffix(".jpg"), quality=88, optimize=True)

        run(chosen, args.count, path, Path(base), done)


if __name__ == "__main__":
    sys.exit(main())
