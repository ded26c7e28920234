"""20 steps of each family, and of one with all options, are what they were: losses and the saved LoRA.

tests/golden/ has one JSON a case; IGL_WRITE_GOLDEN=1 in the environment of this test writes them anew. On the
kind of machine that wrote a file every bit of the LoRA must be the same; on another one, whose matrix
products may sum in another order, losses and tensors must agree closely.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from in_graph_lora.trainer.adapters.lora_file import read_lora
from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PriorConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.data.cache import TrainingData
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.events import StepDone
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.runs.result import Result

from ..tiny_models import TINY, build, samples
from .loaded import load, train_engine, write_pictures

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent / "golden"
STEPS = 20
WHOLE_WAY = "sd15-from-a-folder"


@dataclass(frozen=True)
class GoldenCase:
    family: str
    sections: Mapping[str, Any]


_RATE = OptimizerConfig(learning_rate=1e-3)
_EVERYTHING: dict[str, Any] = {
    "objective": ObjectiveConfig(
        timestep_sampling="logit_normal",
        weighting="min_snr",
        loss="huber",
        noise_offset=0.05,
        input_perturbation=0.1,
        caption_dropout=0.3,
    ),
    "prior": PriorConfig(method="class_images", weight=0.7),
    "optimizer": OptimizerConfig(
        learning_rate=1e-3, accumulation=2, ema_decay=0.9, lora_plus_ratio=4, schedule="linear"
    ),
    "validation": ValidationConfig(held_out=1, every=5),
}
_KINDS = ("locon", "rslora", "dora", "loha", "lokr", "oft", "full")
CASES = {name: GoldenCase(name, {"optimizer": _RATE}) for name in TINY}
CASES |= {
    "sd15-everything": GoldenCase("sd15", _EVERYTHING),
    "sd15-preservation": GoldenCase(
        "sd15", {"prior": PriorConfig(method="output_preservation", class_prompt="a figurine")}
    ),
    "flux1-checkpointed": GoldenCase(
        "flux1", {"optimizer": _RATE, "memory": MemoryConfig(fit="manual", checkpointing=1)}
    ),
}
CASES |= {
    f"sd15-{kind}": GoldenCase("sd15", {"optimizer": _RATE, "adapter": AdapterConfig(kind=kind, rank=4)})
    for kind in _KINDS
}


def machine() -> dict[str, str]:
    """What decides in which order a CPU sums."""
    info = Path("/proc/cpuinfo")
    lines = [x.split(":") for x in info.read_text().splitlines() if ":" in x] if info.exists() else []
    first = {name.strip(): value.strip() for name, value in reversed(lines)}
    kind = [first.get(name, "") for name in ("model name", "cpu family", "model")]
    return {
        "processor": " ".join(kind).strip() or platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def data_of(patcher: Any, family: str, config: TrainConfig) -> TrainingData:
    """Five pictures of one shape, two of the class and one that is held out."""
    x_0, conditions = samples(patcher, TINY[family], 8)
    empty = conditions[7] if config.objective.caption_dropout else None
    every = [
        CachedSample(
            latent=x_0[i],
            conditioning=conditions[i],
            key=str(i),
            caption=f"caption {i}",
            repeats=2 if i == 1 else 1,
            weight=0.5 if i == 2 else 1.0,
            empty=empty,
            class_conditioning=conditions[7],
        )
        for i in range(8)
    ]
    prior = config.prior.uses_pictures
    return TrainingData(
        samples=every[:5], class_samples=every[5:7] if prior else [], validation_samples=every[7:]
    )


def trained(case: GoldenCase, folder: Path) -> dict[str, Any]:
    patcher = build(TINY[case.family])
    config = TrainConfig(
        name="golden", steps=STEPS, data=DataConfig(batch_size=2), save=SaveConfig(every=7), **case.sections
    )
    if "adapter" not in case.sections:
        config = replace(config, adapter=AdapterConfig(rank=4))
    events: list[Any] = []
    with torch.inference_mode(False):
        data = data_of(patcher, case.family, config)
    result = train_engine(patcher, data, config, folder, events.append)
    return figures(result, events)


def figures(result: Result, events: list[Any]) -> dict[str, Any]:
    held_out = [line["loss"] for line in logged(result.run) if line["event"] == "Validated"]
    return {
        "machine": machine(),
        "losses": result.losses,
        "held_out": held_out,
        "gradient_norms": [e.grad_norm for e in events if isinstance(e, StepDone)],
        "events": [line["event"] for line in logged(result.run)],
        "tensors": len(result.lora),
        "norm": norm(result.lora),
        "digest": digest(result.lora),
        "metadata": sorted(read_lora(result.path)[1]),
    }


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def norm(tensors: Mapping[str, Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors.values()) ** 0.5


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Over names, shapes and bytes."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        h.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        h.update(tensors[name].contiguous().numpy().tobytes())
    return h.hexdigest()


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_are_what_they_were(name: str, tmp_path: Path) -> None:
    compare(name, trained(CASES[name], tmp_path))


def test_the_whole_way_from_a_folder_is_what_it_was(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Pictures, VAE, CLIP and a LoRA on both networks, as TrainLoRA trains them."""
    loaded = load(tiny_checkpoint, text_layers=12)
    folder = write_pictures(tmp_path, [(64, 64), (128, 64), (70, 64), (64, 64)])
    dataset = scan_folder(folder, resolution=64)
    config = TrainConfig(
        name=WHOLE_WAY,
        steps=4,
        adapter=AdapterConfig(rank=4),
        optimizer=OptimizerConfig(learning_rate=1e-3, text_encoder_lr=1e-3),
        data=DataConfig(batch_size=2, resolution=64),
        validation=ValidationConfig(held_out=1, every=2),
    )
    events: list[Any] = []
    with torch.inference_mode():
        result = train_on_loaded(
            loaded.model, loaded.clip, loaded.vae, dataset, config, events.append, new_run=True
        )
    compare(WHOLE_WAY, figures(result, events))


def compare(name: str, found: dict[str, Any]) -> None:
    path = FOLDER / f"{name}.json"
    if os.environ.get("IGL_WRITE_GOLDEN"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(path.read_text())
    same = ("events", "tensors", "metadata")
    assert {k: found[k] for k in same} == {k: golden[k] for k in same}
    if found["machine"] == golden["machine"]:
        assert found == golden
    for figure in ("losses", "held_out", "gradient_norms", "norm"):
        assert found[figure] == pytest.approx(golden[figure], rel=2e-3), figure


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*CASES, WHOLE_WAY}
