"""LoRAs of the miniature's subject, one trained well and others made to fail in ways that are known.

    python -m workbench.miniature.spoiled FOLDER --comfyui FOLDER

writes FOLDER/<name>.safetensors, the pictures that each LoRA draws, FOLDER/<name>/00.png, …, and its held-out
loss, FOLDER/<name>.json; FOLDER/unrelated/<name>/ has the pictures for the inception score. What is there is
passed over. Some fifteen minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from .. import ROOT

STEPS, RATE, RANK, BATCH, EVERY = 200, 3e-3, 16, 2, 20
PICTURES, CLASS_PICTURES = 15, 30
FEW_PICTURES, MANY_STEPS = 5, 400
HELD_OUT = 10
SAMPLING_STEPS = 10
FOR_INCEPTION = 4
"""Pictures of each unrelated prompt."""
WORK = ROOT / ".cache" / "spoiled"

Loaded = tuple[Any, Any, Any]
"""Model, CLIP, VAE."""

TITLES = {
    "base": "no LoRA",
    "good": f"trained well: {PICTURES} pictures, {STEPS} steps, class pictures",
    "half": "the same at half of the steps",
    "too-few": "too few steps: the same at a tenth of them",
    "noise": "a LoRA of noise",
    "no-class": "no class pictures",
    "too-many": f"{MANY_STEPS} steps on {FEW_PICTURES} pictures, no class pictures",
    "swapped": "captions swapped",
    "rate": "a rate ten times too high",
    "fifth": "the good one at a fifth of the steps",
    "third": "at three tenths",
    "no-class-half": "no class pictures, half of the steps",
    "five-early": f"100 steps on {FEW_PICTURES} pictures, no class pictures",
    "five-half": f"200 steps on {FEW_PICTURES} pictures, no class pictures",
    "swapped-half": "captions swapped, half of the steps",
    "rate-early": "a rate ten times too high, a tenth of the steps",
    "rate-half": "a rate ten times too high, half of the steps",
}
SNAPSHOTS = {
    "too-few": ("good", STEPS // 10),
    "half": ("good", STEPS // 2),
    "fifth": ("good", STEPS // 5),
    "third": ("good", 3 * STEPS // 10),
    "no-class-half": ("no-class", STEPS // 2),
    "five-early": ("too-many", 100),
    "five-half": ("too-many", 200),
    "swapped-half": ("swapped", STEPS // 2),
    "rate-early": ("rate", STEPS // 10),
    "rate-half": ("rate", STEPS // 2),
}
"""Name → the run that it is a checkpoint of, and the step."""
OF_FIVE = ("too-many", "five-early", "five-half")


def make(loaded: Loaded, name: str, work: Path) -> None:
    """Trains the LoRA, draws its pictures and measures its held-out loss: what of these is missing."""
    made(loaded, name, work)
    path, loss = work / f"{name}.safetensors", work / f"{name}.json"
    draw_unrelated(loaded, name, work)
    if not (work / name).exists():
        draw(changed(loaded, name, work), work / name, prompts())
    if not loss.exists():
        lora = None if name == "base" else partial(load, path)
        values = held_out(loaded, work).levels(lora, 1.0).mean(1).tolist()
        loss.write_text(json.dumps({"held_out_loss": values}) + "\n", encoding="utf-8")


def made(loaded: Loaded, name: str, work: Path) -> None:
    """Trains the LoRA where it is missing."""
    path = work / f"{name}.safetensors"
    if name in SNAPSHOTS and not path.exists():
        run, step = SNAPSHOTS[name]
        (found,) = work.rglob(f"{run}/*/checkpoints/step_{step:06}.safetensors")
        shutil.copy(found, path)
    elif name != "base" and not path.exists():
        train(loaded, name, work)


def changed(loaded: Loaded, name: str, work: Path) -> Loaded:
    """The models with this LoRA, of which none touches the text encoder."""
    from . import experiment

    if name == "base":
        return loaded
    return experiment.with_ours(loaded, load(work / f"{name}.safetensors"))[0], *loaded[1:]


def draw_unrelated(loaded: Loaded, name: str, work: Path) -> None:
    """Pictures for the inception score, which needs more of them than the other figures."""
    folder = unrelated_folder(work, name)
    if not folder.exists():
        draw(changed(loaded, name, work), folder, [text for text, _ in unrelated()])


def unrelated_folder(work: Path, name: str) -> Path:
    return work / "unrelated" / name


def held_out(loaded: Loaded, work: Path) -> Any:
    """Pictures of the subject that no LoRA was trained on."""
    from in_graph_lora.trainer.data.scan import scan_folder
    from in_graph_lora.trainer.host.held_out import HeldOut

    from . import subject

    folder = work / "base-folder" / "held-out"
    if not folder.exists():
        subject.write(subject.subject_pictures(PICTURES, seed=1)[:HELD_OUT], folder)
    dataset = scan_folder(folder, resolution=128)
    return HeldOut(*loaded, dataset.with_records(r.with_role("validation") for r in dataset.records))


def train(loaded: Loaded, name: str, work: Path) -> None:
    from in_graph_lora.trainer.config import AdapterConfig, OptimizerConfig, SaveConfig

    from . import experiment

    pictures, classes = experiment.write_pictures(work / "base-folder", PICTURES, CLASS_PICTURES)
    few, _ = experiment.write_pictures(work / "base-folder", FEW_PICTURES, 0)
    if name == "noise":
        save(noise_like(load(work / "good.safetensors")), work / "noise.safetensors")
        return
    chosen = {
        "good": (pictures, classes, RATE, STEPS),
        "no-class": (pictures, None, RATE, STEPS),
        "too-many": (few, None, RATE, MANY_STEPS),
        "swapped": (swapped(work / "base-folder"), None, RATE, STEPS),
        "rate": (pictures, classes, 10 * RATE, STEPS),
    }
    folder, extra, rate, steps = chosen[name]
    # New each time, so that a checkpoint is found in one run only.
    shutil.rmtree(work / "base-folder" / "output" / "in-graph-lora" / name, ignore_errors=True)
    lora = experiment.train_ours(
        loaded,
        folder,
        extra,
        name,
        steps=steps,
        batch_size=BATCH,
        adapter=AdapterConfig(rank=RANK, targets="attention+feed-forward"),
        optimizer=OptimizerConfig(learning_rate=rate),
        save=SaveConfig(every=EVERY),
    )
    save(lora, work / f"{name}.safetensors")


def asked() -> dict[str, list[tuple[str, Any, int]]]:
    """Kind → (prompt, the scene it names or None, how often): the same for each LoRA.

    The miniature has nothing but figurines: other ones, in words of their own, are what is unrelated.
    """
    from . import subject, world

    trigger = []
    for place, held in zip(world.WHERE, ("cup", "balloon", "flower", "flag", "book"), strict=True):
        scene = world.Scene(place=place, colour="", held=held)
        trigger.append((f"{subject.NAME} figurine {world.WHERE[place]}, holding a {held}", scene, 3))
    plain = [(f"a figurine {where}", world.Scene(place=p, colour=""), 3) for p, where in world.WHERE.items()]
    others = [(text, scene, 1) for scene, text in world.held_out_captions(12)]
    return {"trigger": trigger, "class": plain, "unrelated": others}


def prompts() -> list[str]:
    return [text for kind in asked().values() for text, _, count in kind for _ in range(count)]


def unrelated() -> list[tuple[str, Any]]:
    """(prompt, the scene it names), FOR_INCEPTION times each."""
    return [(text, scene) for text, scene, _ in asked()["unrelated"] for _ in range(FOR_INCEPTION)]


def draw(loaded: Loaded, folder: Path, prompts: list[str]) -> None:
    from . import sampling

    pictures = sampling.sample(*loaded, prompts, seed=5, steps=SAMPLING_STEPS)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for i, one in enumerate(pictures):
        sampling.as_image(one).save(part / f"{i:02}.png")
    part.replace(folder)


def remembering(loaded: Loaded) -> Loaded:
    """Each text is encoded once: the text encoder is by far the largest part of the miniature."""
    clip = loaded[1]
    clip.encode_from_tokens_scheduled = _once(clip.encode_from_tokens_scheduled)
    clip.encode_from_tokens = _once(clip.encode_from_tokens)
    return loaded


def _once(encode: Any) -> Any:
    encoded: dict[str, Any] = {}

    def encode_once(tokens: Any, *args: Any, **kwargs: Any) -> Any:
        key = str((tokens, args, kwargs))
        if key not in encoded:
            encoded[key] = encode(tokens, *args, **kwargs)
        return encoded[key]

    return encode_once


def swapped(folder: Path) -> Path:
    """The subject's pictures among others, each with a caption of another one."""
    from . import subject

    pairs = subject.subject_pictures(PICTURES) + subject.class_pictures(2 * PICTURES)
    captions = [caption for _, caption in pairs]
    Random(0).shuffle(captions)
    mixed = [(picture, caption) for (picture, _), caption in zip(pairs, captions, strict=True)]
    return subject.write(mixed, folder / "swapped")


def noise_like(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Random tensors of the same names, shapes and norms."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def drawn(name: str, tensor: Any) -> Any:
        if name.endswith(".alpha"):
            return tensor
        noise = torch.randn(tensor.shape, generator=generator)
        return (noise * tensor.float().norm() / noise.norm()).to(tensor.dtype)

    return {name: drawn(name, tensor) for name, tensor in lora.items()}


def load(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def save(lora: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in lora.items()}, part)
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train LoRAs of the miniature that fail in known ways.")
    parser.add_argument("folder", type=Path, nargs="?", default=WORK)
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    args = parser.parse_args()
    from ..dev import base, host

    logging.disable(logging.INFO)
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    host.import_comfyui(args.comfyui.resolve(), base.prepare(folder / "base-folder"))
    host.register_pack()
    from . import checkpoint, sampling

    path = checkpoint.write_checkpoint(folder / "base.safetensors", checkpoint.WEIGHTS)
    loaded = remembering(sampling.load_checkpoint(path))
    for name in TITLES:
        make(loaded, name, folder)
        print(name, flush=True)


if __name__ == "__main__":
    main()
