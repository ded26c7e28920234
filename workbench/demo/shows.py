"""What the demo can show: a shipped workflow, with the checkpoint and the pictures that it needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import ROOT
from ..demo.photos import FOLDER, write_photos
from ..dev.steps import SetupError, say
from ..miniature.checkpoint import is_current
from ..miniature.subject import CLASS_COUNT, COUNT
from ..workflow import Json, override

MINIATURE = "miniature-sd3.safetensors"
RANDOM_SD15 = "in-graph-lora-demo-sd15.safetensors"
MINIATURE_PICTURES = Path("miniature")
"""Below the input folder: subject/ and class/, as the workflow names them."""


@dataclass(frozen=True)
class Show:
    workflow: str
    """File in workflows/."""
    provide: Callable[[Path, Path], None]
    """(ComfyUI, base directory): writes what the workflow asks for."""
    adapt: Callable[[dict[str, Json]], None]
    """Fits the graph to this machine."""


def _provide_miniature(comfyui: Path, base: Path) -> None:
    target = base / "models" / "checkpoints" / MINIATURE
    if not is_current(target):
        say(f"Writing the miniature base model to {target} (270 MB)")
        _run([sys.executable, "-m", "workbench.miniature.checkpoint", target, "--comfyui", comfyui])
    pictures = base / "input" / MINIATURE_PICTURES
    if len(list(pictures.glob("class/*.txt"))) < CLASS_COUNT:  # also after an interruption
        say(f"Drawing {COUNT} pictures of the subject and {CLASS_COUNT} of its class in {pictures}")
        _run([sys.executable, "-m", "workbench.miniature.subject", pictures])


def _provide_photos(comfyui: Path, base: Path) -> None:
    target = base / "models" / "checkpoints" / RANDOM_SD15
    if not target.exists():
        say(f"Writing a checkpoint with generated weights to {target} (340 MB)")
        _run([sys.executable, "-m", "workbench.weights", target, "--comfyui", comfyui])
    write_photos(base / "input")


def _run(command: list[object]) -> None:
    """In a process of its own: it imports ComfyUI's model classes."""
    if subprocess.call([str(part) for part in command], cwd=ROOT) != 0:
        raise SetupError("that failed; the lines above say why")


def _small(prompt: dict[str, Json]) -> None:
    """Small enough for a CPU: fewer steps and smaller pictures."""
    size = 128
    override(prompt, "CheckpointLoaderSimple", ckpt_name=RANDOM_SD15)
    override(prompt, "LoadDataset", folder=FOLDER, resolution=size)
    override(prompt, "TrainLoRA", steps=60, name="demo")
    override(prompt, "CompareBaseline", width=size, height=size)


def _as_it_is(prompt: dict[str, Json]) -> None:
    override(prompt, "CheckpointLoaderSimple", ckpt_name=MINIATURE)


SUBJECT = Show("subject.json", _provide_miniature, _as_it_is)
"""A figurine is learned by a small trained model: real learning, in minutes on a CPU."""
PHOTOS = Show("first_lora.json", _provide_photos, _small)
"""The first workflow on pictures of mixed sizes. The weights are random, so the pictures stay noise."""
