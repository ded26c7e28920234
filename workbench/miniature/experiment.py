"""What a LoRA learned of the subject, in figures: pictures are drawn with it and judged by the classifier.

Three questions, each with prompts of its own:

    identifier   "aawxbc figurine on the beach, holding a cup": is it the subject, there, with that object?
    class        held-out captions of other figurines: are they still right, and not the subject?
    plain        "a figurine on the beach": do figurines of no named colour stay as diverse as the base's?
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from . import judge, sampling, subject, world


@dataclass(frozen=True, kw_only=True)
class Prompts:
    identifier: list[tuple[world.Scene, str]]
    classes: list[tuple[world.Scene, str]]
    plain: list[str]

    @classmethod
    def make(cls, count: int, seed: int = 0) -> Prompts:
        """`count` for class and plain, twice as many for identifier; every place and object alike often."""
        random = Random(f"experiment {seed}")
        places, objects = list(world.WHERE), list(world.OBJECTS)
        identifier = []
        for i in range(2 * count):
            held = objects[(i - i // 4 - 1) % len(objects)] if i % 4 else ""
            scene = world.Scene(place=places[i % len(places)], colour="", held=held)
            parts = [f"{subject.NAME} figurine {world.WHERE[scene.place]}"]
            parts += ["wearing a hat"] * (random.random() < 0.5) + [f"holding a {held}"] * bool(held)
            identifier.append((scene, ", ".join(parts)))
        plain = [f"a figurine {world.WHERE[places[i % len(places)]]}" for i in range(count)]
        return cls(identifier=identifier, classes=world.held_out_captions(count, seed), plain=plain)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Shares, 0 to 1."""

    subject: float
    """Identifier prompts whose picture is the subject."""
    place: float
    """Identifier prompts whose picture has the right place."""
    held: float
    """Identifier prompts with an object whose picture has it."""
    class_right: float
    """Class prompts whose picture has the right place and colour."""
    class_leak: float
    """Class and plain prompts whose picture is the subject."""
    diversity: float
    """Entropy of the body colours of plain prompts, over that of equally frequent ones."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures of the three kinds of prompts, [N, 3, 128, 128] each."""

    identifier: Tensor
    classes: Tensor
    plain: Tensor


def draw(loaded: tuple[Any, Any, Any], prompts: Prompts, seed: int = 0, steps: int = 20) -> Drawn:
    """loaded: model, CLIP and VAE with the LoRA on them. One seed gives every LoRA the same noise."""

    def sampled(texts: Sequence[str], offset: int) -> Tensor:
        return sampling.sample(*loaded, texts, seed=seed + offset, steps=steps)

    return Drawn(
        identifier=sampled([text for _, text in prompts.identifier], 0),
        classes=sampled([text for _, text in prompts.classes], 1),
        plain=sampled(prompts.plain, 2),
    )


def measure(drawn: Drawn, prompts: Prompts) -> Learned:
    expert = judge.load_judge()
    identifier = judge.opinions(expert, drawn.identifier)
    classes = judge.opinions(expert, drawn.classes)
    plain = judge.opinions(expert, drawn.plain)
    asked = [scene for scene, _ in prompts.identifier]
    holding = [(scene, labels) for scene, labels in zip(asked, identifier, strict=True) if scene.held]
    return Learned(
        subject=_share(labels["subject"] == "yes" for labels in identifier),
        place=_share(s.place == labels["place"] for s, labels in zip(asked, identifier, strict=True)),
        held=_share(scene.held == labels["held"] for scene, labels in holding),
        class_right=_share(
            (scene.place, scene.colour) == (labels["place"], labels["colour"])
            for (scene, _), labels in zip(prompts.classes, classes, strict=True)
        ),
        class_leak=_share(labels["subject"] == "yes" for labels in [*classes, *plain]),
        diversity=_entropy([labels["colour"] for labels in plain]) / math.log(len(world.COLOURS)),
    )


def _share(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def _entropy(values: Sequence[str]) -> float:
    counts = Counter(values)
    return sum(n / len(values) * math.log(len(values) / n) for n in counts.values())


def write_pictures(folder: Path, count: int, class_count: int) -> tuple[Path, Path]:
    """(the subject's, the class's)"""
    return (
        subject.write(subject.subject_pictures(count), folder / f"subject-{count}"),
        subject.write(subject.class_pictures(class_count), folder / f"class-{class_count}"),
    )


def with_ours(loaded: tuple[Any, Any, Any], lora: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    from in_graph_lora.trainer.host.lora import apply_lora

    model, clip, vae = loaded
    patched, patched_clip = apply_lora(model, clip, lora, 1.0, 1.0)
    return patched, patched_clip, vae


def train_ours(
    loaded: tuple[Any, Any, Any],
    pictures: Path,
    classes: Path | None,
    name: str,
    emit: Any = None,
    **sections: Any,
) -> Mapping[str, Any]:
    """Train LoRA's engine. classes: pictures for prior preservation. Returns the LoRA's tensors."""
    import torch

    from in_graph_lora.trainer.config import DataConfig, PriorConfig, TrainConfig
    from in_graph_lora.trainer.data.scan import scan_folder
    from in_graph_lora.trainer.host.training import train_on_loaded

    dataset = scan_folder(pictures, resolution=128)
    prior = PriorConfig()
    if classes is not None:
        extra = scan_folder(classes, resolution=128, role="class")
        dataset = dataset.with_records([*dataset.records, *extra.records])
        prior = PriorConfig(method="class_images")
    batch = sections.pop("batch_size", 4)
    config = TrainConfig(
        name=name, prior=prior, data=DataConfig(batch_size=batch, resolution=128), **sections
    )
    with torch.inference_mode():
        return train_on_loaded(*loaded, dataset, config, emit or (lambda event: None), new_run=True).lora


def train_core(
    loaded: tuple[Any, Any, Any], pictures: Path, steps: int, rank: int, batch: int, **options: Any
) -> Mapping[str, Any]:
    """ComfyUI's own TrainLoraNode, at its defaults but for what is given."""
    import torch
    from comfy_extras.nodes_train import TrainLoraNode
    from PIL import Image

    model, clip, vae = loaded
    inputs = {i.id: i.default for i in TrainLoraNode.GET_SCHEMA().inputs if hasattr(i, "default")}
    inputs |= {"steps": steps, "rank": rank, "batch_size": batch, **options}
    linked = ("model", "latents", "positive")
    with torch.inference_mode():
        latents, conditions = [], []
        for path in sorted(pictures.glob("*.png")):
            with Image.open(path) as picture:
                pixels = judge.as_tensor([picture.convert("RGB")]).movedim(1, -1)
            latents.append(vae.encode(pixels))
            text = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
            conditions.append(clip.encode_from_tokens_scheduled(clip.tokenize(text)))
        out = TrainLoraNode.execute(
            model=[model],
            latents=[{"samples": torch.cat(latents)}],
            positive=conditions,
            **{name: [value] for name, value in inputs.items() if name not in linked},
        )
    return out.result[0]


def with_stock(loaded: tuple[Any, Any, Any], lora: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    import comfy.sd

    model, clip, vae = loaded
    return comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)[0], clip, vae
