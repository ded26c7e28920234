"""Makes the base model again, from nothing to the stored weights, in about an hour and a half on two cores.

    python -m miniature.train --comfyui FOLDER [--work FOLDER] [--minutes 75] [--threads 2]

Every stage leaves its result in the work folder and is passed over when it is there, so the command can be
stopped and started again at any moment.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).parent
PICTURES, PRACTICE_PICTURES = 20_000, 3_000


def train(work: Path, minutes: float, autoencoder_minutes: float, compiled: bool) -> None:
    import torch

    from . import data
    from .autoencoder import practice_pictures, train_autoencoder
    from .base import train_base

    work.mkdir(parents=True, exist_ok=True)
    practice = work / "practice.pt"
    if not practice.exists():
        torch.save(practice_pictures(PRACTICE_PICTURES, seed=0), practice)
    autoencoder = train_autoencoder(work, autoencoder_minutes, torch.load(practice))
    store(autoencoder, work / "autoencoder.safetensors")
    data.draw(work, PICTURES)
    data.embed(work)
    data.compress(work, autoencoder)
    network = train_base(work, minutes, data.load(work), compiled)
    store(network, work / "network.safetensors")


def store(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: weight.half().contiguous() for name, weight in module.state_dict().items()}, path)


def publish(work: Path) -> None:
    """Copies weights and log to where the repository keeps them, and draws the curve."""
    weights = HERE / "weights"
    weights.mkdir(exist_ok=True)
    for name in ("network", "autoencoder"):
        (weights / f"{name}.safetensors").write_bytes((work / f"{name}.safetensors").read_bytes())
    logs = {}
    for name in ("autoencoder", "base"):
        text = (work / f"{name}.jsonl").read_text(encoding="utf-8")
        (HERE / f"{name}.jsonl").write_text(text, encoding="utf-8")
        logs[name] = [json.loads(line) for line in text.splitlines()]
    from .curve import draw_curves

    draw_curves(logs).save(HERE / "curve.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature base model from nothing.")
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    parser.add_argument("--work", type=Path, default=HERE.parent / ".cache" / "miniature")
    parser.add_argument("--minutes", type=float, default=72, help="for the network")
    parser.add_argument("--autoencoder-minutes", type=float, default=22)
    parser.add_argument("--compile", action="store_true", help="a third faster; needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sys.path.insert(0, str(args.comfyui))
    from comfy.cli_args import args as comfy_args

    comfy_args.cpu = True
    import torch

    torch.set_num_threads(args.threads)
    train(args.work, args.minutes, args.autoencoder_minutes, args.compile)
    publish(args.work)


if __name__ == "__main__":
    main()
