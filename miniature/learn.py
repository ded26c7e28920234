"""The learning table: what is learned of the subject with few and many pictures, by us and by others.

    python -m miniature.learn --comfyui FOLDER [--rows base ours-15 core-15] [--steps 300] [--count 50]

prints one row after another and writes them beside this file (learning.json). Two to five minutes a row on
two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RANK, BATCH, CLASS_PICTURES = 16, 4, 50
RATE = 3e-3
TARGETS = "attention+feed-forward"


def rows(steps: int) -> dict[str, Callable[..., Any]]:
    """Name → (loaded, pictures) → loaded with the LoRA on it."""
    from in_graph_lora.trainer.config import AdapterConfig, OptimizerConfig

    from . import experiment

    def ours(
        count: int, kind: str = "lora", prior: bool = True, text_lr: float = 0.0, rate: float = RATE
    ) -> Any:
        def train(loaded: Any, folder: Path) -> Any:
            pictures, classes = experiment.write_pictures(folder, count, CLASS_PICTURES)
            lora = experiment.train_ours(
                loaded,
                pictures,
                classes if prior else None,
                f"{kind}-{count}",
                steps=steps,
                batch_size=BATCH,
                adapter=AdapterConfig(kind=kind, rank=RANK, targets=TARGETS),
                optimizer=OptimizerConfig(learning_rate=rate, text_encoder_lr=text_lr),
            )
            return experiment.with_ours(loaded, lora)

        return train

    def core(count: int, **options: Any) -> Any:
        def train(loaded: Any, folder: Path) -> Any:
            pictures, _ = experiment.write_pictures(folder, count, CLASS_PICTURES)
            lora = experiment.train_core(loaded, pictures, steps, RANK, BATCH, **options)
            return experiment.with_stock(loaded, lora)

        return train

    return {
        "base": lambda loaded, folder: loaded,
        "ours-5": ours(5),
        "ours-15": ours(15),
        "ours-25": ours(25),
        "ours-15-no-prior": ours(15, prior=False),
        "core-15": core(15),
        "core-15-same-rate": core(15, learning_rate=RATE),
        "ours-15-text-encoder": ours(15, text_lr=1e-4),
        "ours-15-dora": ours(15, "dora"),
        "ours-15-lokr": ours(15, "lokr"),
    }


def run(
    chosen: list[str], steps: int, count: int, checkpoint: Path, folder: Path, done: Callable[..., None]
) -> None:
    from . import experiment, sampling

    prompts = experiment.Prompts.make(count)
    for name in chosen:
        loaded = sampling.load_checkpoint(checkpoint)  # anew: no row may leave anything to the next one
        started = time.process_time()
        trained = rows(steps)[name](loaded, folder / name)
        seconds = time.process_time() - started
        done(name, experiment.measure(trained, prompts), seconds)


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
        found: dict[str, Mapping[str, Any]] = {}

        def done(name: str, learned: Any, seconds: float) -> None:
            found[name] = {**asdict(learned), "cpu_seconds": round(seconds, 1)}
            print(f"| {name} | " + " | ".join(learned.row()) + f" | {seconds:.0f} |", flush=True)
            result = {"steps": args.steps, "prompts": args.count, "rows": found}
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

        run(args.rows or list(rows(args.steps)), args.steps, args.count, path, Path(base), done)


if __name__ == "__main__":
    sys.exit(main())
