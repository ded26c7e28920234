"""Makes the base model again, from nothing to the stored weights, in some hours on two cores.

    python -m workbench.miniature.train --comfyui FOLDER [--work FOLDER] [--minutes 108] [--from-stored]

Every stage leaves its result in the work folder and is passed over when it is there, so the command can be
stopped and started again at any moment. With --from-stored the stored weights are trained on unless the work
folder has a training begun; the minutes that they took count, so --minutes must be more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .. import ROOT
from ..dev.host import import_comfyui
from .checkpoint import WEIGHTS

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).parent
PICTURES, PRACTICE_PICTURES = 20_000, 3_000


def train(work: Path, minutes: float, autoencoder_minutes: float, compiled: bool) -> None:
    import torch

    from . import data
    from .autoencoder import new_autoencoder, practice_pictures, train_autoencoder
    from .base import train_base
    from .fitting import write_whole

    work.mkdir(parents=True, exist_ok=True)
    compressor = work / "autoencoder.safetensors"
    if not compressor.exists():
        practice = work / "practice.pt"
        if not practice.exists():
            pictures = practice_pictures(PRACTICE_PICTURES, seed=0)
            write_whole(practice, lambda part: torch.save(pictures, part))
        store(train_autoencoder(work, autoencoder_minutes, torch.load(practice)), compressor)
    autoencoder = restore(new_autoencoder(), compressor)
    data.draw(work, PICTURES)
    data.embed(work)
    data.compress(work, autoencoder)
    network = train_base(work, minutes, data.load(work), compiled)
    store(network, work / "network.safetensors")


def store(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    from .fitting import write_whole

    weights = {name: weight.half().contiguous() for name, weight in module.state_dict().items()}
    write_whole(path, lambda part: save_file(weights, part))


def restore(module: nn.Module, path: Path) -> nn.Module:
    from safetensors.torch import load_file

    module.load_state_dict(load_file(path))
    return module


def begin_with_stored(work: Path, minutes: float) -> None:
    """Puts the stored weights and their logs where training goes on from. The optimizers begin anew."""
    from .base import new_network, optimizers
    from .fitting import save_state

    if (work / "base.pt").exists():
        return
    last = json.loads((HERE / "base.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    taken = last["seconds"] / 60
    if minutes < taken + 1:
        sys.exit(f"--minutes is {minutes:g} and the stored weights took {taken:.0f} of them; give more")
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(WEIGHTS / "autoencoder.safetensors", work)
    for name in ("autoencoder", "base"):
        shutil.copy(HERE / f"{name}.jsonl", work)
    network = restore(new_network(), WEIGHTS / "network.safetensors")
    save_state(work / "base.pt", network, network, optimizers(network), last["step"], last["seconds"])


def publish(work: Path) -> None:
    """Copies weights and log to where the repository keeps them, and draws the curve."""
    for name in ("network", "autoencoder"):
        shutil.copy(work / f"{name}.safetensors", WEIGHTS)
    logs = {}
    for name in ("autoencoder", "base"):
        log = Path(shutil.copy(work / f"{name}.jsonl", HERE))
        logs[name] = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    from .curve import draw_curves

    draw_curves(logs).save(ROOT / "docs" / "learning" / "curve.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature base model from nothing.")
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "miniature")
    parser.add_argument("--minutes", type=float, default=108, help="for the network")
    parser.add_argument("--autoencoder-minutes", type=float, default=22)
    parser.add_argument("--from-stored", action="store_true", help="go on from the stored weights")
    parser.add_argument("--compile", action="store_true", help="a third faster; needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    import_comfyui(args.comfyui.resolve())
    import torch

    torch.set_num_threads(args.threads)
    if args.from_stored:
        begin_with_stored(args.work, args.minutes)
    train(args.work, args.minutes, args.autoencoder_minutes, args.compile)
    publish(args.work)


if __name__ == "__main__":
    main()
