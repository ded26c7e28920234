"""Runs as a training leaves them, written in milliseconds."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from in_graph_lora.trainer.config import AdapterConfig, PreviewConfig, TrainConfig
from in_graph_lora.trainer.files import sha256, write_image
from in_graph_lora.trainer.runs.folder import RunFolder
from in_graph_lora.trainer.runs.record import Finished, Record

KEY = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"


def write_run(
    root: Path,
    name: str = "toy",
    *,
    run: str = "20261124-120000",
    steps: int = 40,
    every: int = 10,
    rank: int = 4,
    finished: bool = True,
    held_out: bool = True,
    pictures: bool = True,
    age: int = 0,
    prompts: tuple[str, ...] = ("a toy", "一个玩具"),
    **settings: Any,
) -> RunFolder:
    """`<root>/<name>/<run>/` with a LoRA at every `every` steps; age: seconds since it ended."""
    folder = RunFolder(root / name / run)
    folder.checkpoints.mkdir(parents=True)
    config = TrainConfig(
        name=name,
        steps=steps,
        adapter=AdapterConfig(rank=rank),
        preview=PreviewConfig(prompts=prompts),
        **settings,
    )
    folder.write_config(config)
    lines = [
        {"event": "StepDone", "step": s, "steps": steps, "loss": _loss(s, rank), "lr": 1e-4, "seconds": 0.1}
        for s in range(1, steps + 1)
    ]
    reached = range(every, steps + 1, every) if every else range(0)
    for step in [0, *reached] if held_out else []:
        lines.append(
            {"event": "Validated", "step": step, "loss": _loss(step + 1, rank) + 0.01, "best": False}
        )
    folder.log.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for step in reached:
        lora = folder.checkpoints / f"step_{step:06d}.safetensors"
        save_file(_lora(rank, step), lora, {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)})
        (folder.checkpoints / f"step_{step:06d}.json").write_text("{}")
    for step in [0, *reached] if pictures else []:
        for i in range(len(prompts)):
            colour = (int(255 * step / steps), 90 + 80 * i, 160)
            write_image(
                folder.path / "previews" / f"step_{step:06d}_{i + 1}.png", Image.new("RGB", (64, 64), colour)
            )
    done = None
    if finished and reached:
        source = folder.checkpoints / f"step_{reached[-1]:06d}.safetensors"
        done = Finished.of(
            config, steps, reached=steps, lora=root.parent / "loras" / f"{name}.safetensors", source=source
        )
        assert done.sha256 == sha256(source)
    record = folder.path / "run.json"
    Record(key="0" * 64, dataset="d", finished=done).write(record)
    if age:
        then = record.stat().st_mtime - age
        os.utime(record, (then, then))
    return folder


def _loss(step: int, rank: int) -> float:
    return 0.05 + 0.2 * math.exp(-step / (5 * rank)) + 0.01 * math.sin(step)


def _lora(rank: int, step: int) -> dict[str, torch.Tensor]:
    return {
        f"{KEY}.lora_down.weight": torch.full((rank, 320), 0.01),
        f"{KEY}.lora_up.weight": torch.full((320, rank), 1e-4 * step),
        f"{KEY}.alpha": torch.tensor(float(rank)),
    }


def write_report(
    folder: RunFolder, step: int, *, name: str = "", evaluation: str = "20261124-130000"
) -> Path:
    """Of Evaluate LoRA, as far as Load Run reads it: `step` is the best of what it looked at."""
    columns = [{"name": "", "step": None}, {"name": name or folder.path.parent.name, "step": step}]
    path = folder.path / "evidence" / evaluation / "report.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"columns": columns, "best": {"column": 1, "reason": ""}}), encoding="utf-8")
    return path
