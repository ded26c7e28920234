"""Two processes train the LoRA of one, stop together, and go on as any other number."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from safetensors.torch import load_file

from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import TrainerError
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.runs.checkpoints import newest
from workbench.dev import base

from .loaded import Loaded, write_pictures

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("processes_worker.py")
COMMON = TrainConfig(
    name="test",
    steps=4,
    adapter=AdapterConfig(rank=2),
    objective=ObjectiveConfig(caption_dropout=0.3, noise_offset=0.05, input_perturbation=0.1),
    # A larger eps: where a gradient is next to nothing, Adam would make a step of its rounding.
    optimizer=OptimizerConfig(learning_rate=1e-3, accumulation=2, ema_decay=0.9, warmup_steps=1, eps=1e-4),
    data=DataConfig(resolution=64, batch_size=3),
    save=SaveConfig(every=2),
    memory=MemoryConfig(fit="manual"),
)
CONFIGS = {
    # Batches of 3, of two shapes, the last of an epoch short, by two processes: 5 pictures, one held out.
    "everything": replace(
        COMMON,
        preview=PreviewConfig(prompts=("a figurine",), every=2, steps=1, cfg=1.0),
        validation=ValidationConfig(held_out=1, every=2, keep_best=True),
        prior=PriorConfig(method="class_images", class_prompt="a figurine", class_images=2, steps=1),
    ),
    "text": replace(
        COMMON, steps=2, optimizer=replace(COMMON.optimizer, text_encoder_lr=5e-4, accumulation=1)
    ),
    "streamed": replace(
        COMMON,
        memory=MemoryConfig(fit="manual", streamed=1.0),
        prior=PriorConfig(method="output_preservation", class_prompt="a figurine"),
    ),
    # One picture a batch: the processes have different batches of a step.
    "stopped": replace(COMMON, data=DataConfig(resolution=64), name="stopped"),
    "resumed": replace(COMMON, name="resumed"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = [(64, 64), (128, 32), (64, 64), (64, 64), (128, 32)]
    return write_pictures(tmp_path_factory.mktemp("processes") / "pictures", sizes)


class Alone:
    """The same trainings in this process."""

    def __init__(self, loaded: Loaded, pictures: Path) -> None:
        self.loaded, self.pictures = loaded, pictures

    def train(self, config: TrainConfig, output: Path, stop_after: int = 0) -> Any:
        asked = []

        def stop() -> bool:
            asked.append(0)
            return bool(stop_after) and len(asked) > stop_after

        before = folder_paths.output_directory
        folder_paths.output_directory = str(output)
        try:
            with torch.inference_mode():
                return train_on_loaded(
                    *(self.loaded.model, self.loaded.clip, self.loaded.vae),
                    *(scan_folder(self.pictures, resolution=64), config, lambda event: None),
                    stop_requested=stop,
                )
        finally:
            folder_paths.output_directory = before


@pytest.fixture(scope="module")
def alone(loaded: Loaded, pictures: Path) -> Alone:
    return Alone(loaded, pictures)


def together(
    folder: Path, comfyui: Path, checkpoint: Path, requests: Sequence[Mapping[str, Any]]
) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes says, by the training's name."""
    file = folder / "requests.json"
    file.write_text(json.dumps(requests))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(2):
        command = [sys.executable, WORKER, comfyui, base.prepare(folder / f"base{rank}"), checkpoint, file]
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        env = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        with (folder / f"said{rank}").open("w") as out, (folder / f"errors{rank}").open("w") as errors:
            running.append(
                subprocess.Popen(
                    [str(part) for part in command],
                    env={**os.environ, **{k: str(v) for k, v in env.items()}},
                    stdout=out,
                    stderr=errors,
                )
            )
    try:
        codes = [process.wait(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    said = []
    for rank, code in enumerate(codes):
        lines = [line for line in (folder / f"said{rank}").read_text().splitlines() if line[:1] == "{"]
        assert lines or code < 0, (folder / f"errors{rank}").read_text()[-3000:]
        said.append({line.pop("name"): line for line in map(json.loads, lines)})
    return said


def request(name: str, config: TrainConfig, pictures: Path, *output: Path, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "config": config.to_dict(),
        "pictures": [str(pictures)],
        "output": [str(path) for path in output],
        **more,
    }


def lora_of(output: Path) -> dict[str, torch.Tensor]:
    (path,) = (output / "loras").iterdir()
    return load_file(path)


def run_of(output: Path) -> Path:
    (record,) = output.rglob("run.json")
    return record.parent


def check_equal(own: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert own.keys() == other.keys()
    far = max(float((own[name] - other[name]).abs().max()) for name in own)
    assert far <= 1e-6, far
    assert max(float(t.abs().max()) for name, t in own.items() if "up" in name) > 1e-4, "it has learned"


@pytest.fixture(scope="module")
def both(alone, pictures, comfyui, tiny_checkpoint, tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """(folder, what each process said) of all trainings that end in order, in one start of two."""
    folder = tmp_path_factory.mktemp("both")
    alone.train(CONFIGS["resumed"], folder / "resumed", stop_after=2)
    assert not list((folder / "resumed").rglob("step_000004*"))
    names = ["everything", "text", "streamed", "resumed"]
    requests = [request(name, CONFIGS[name], pictures, folder / name) for name in names]
    # The second process has a disk of its own.
    apart = folder / "apart0", folder / "apart1"
    requests.append(request("apart", CONFIGS["stopped"], pictures, *apart))
    requests.append(request("stopped", CONFIGS["stopped"], pictures, folder / "stopped", stop=[1, 2]))
    return folder, together(folder, comfyui, tiny_checkpoint, requests)


@pytest.mark.parametrize("name", ["everything", "text", "streamed"])
def test_two_processes_train_the_lora_of_one(both, alone, tmp_path, name):
    folder, said = both
    own = alone.train(CONFIGS[name], tmp_path)
    check_equal(lora_of(folder / name), lora_of(tmp_path))
    assert [s[name]["steps"] for s in said] == [list(range(1, CONFIGS[name].steps + 1))] * 2
    assert said[0][name] == said[1][name], "all have the result"
    assert said[0][name]["losses"] == pytest.approx(own.losses, abs=1e-5)


def test_the_main_process_draws_measures_and_keeps_the_best_as_one_alone_does(both, alone, tmp_path):
    folder, _ = both
    alone.train(CONFIGS["everything"], tmp_path)

    def files(output: Path) -> list[str]:
        run = run_of(output)
        return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.suffix != ".0")

    assert files(folder / "everything") == files(tmp_path)
    assert len(list((folder / "everything").rglob("class-images/*/*.png"))) == 2

    def held_out(output: Path) -> list[float]:
        lines = (run_of(output) / "events.jsonl").read_text().splitlines()
        return [e["loss"] for e in map(json.loads, lines) if e["event"] == "Validated"]

    assert len(held_out(tmp_path)) == 3
    assert held_out(folder / "everything") == pytest.approx(held_out(tmp_path), abs=1e-5)


def test_a_run_of_one_process_goes_on_with_two(both, alone, tmp_path):
    folder, said = both
    alone.train(CONFIGS["resumed"], tmp_path)
    assert [s["resumed"]["steps"] for s in said] == [[3, 4]] * 2
    check_equal(lora_of(folder / "resumed"), lora_of(tmp_path))


def test_a_stop_on_one_stops_both_and_one_alone_goes_on(both, alone, tmp_path):
    folder, said = both
    assert [(s["stopped"]["steps"], s["stopped"]["stopped"]) for s in said] == [([1, 2], True)] * 2
    checkpoint, damaged = newest(run_of(folder / "stopped") / "checkpoints")
    assert (checkpoint and checkpoint.step, damaged) == (2, [])
    alone.train(CONFIGS["stopped"], folder / "stopped")
    alone.train(CONFIGS["stopped"], tmp_path)
    ended, straight = folder / "stopped" / "loras" / "stopped_2.safetensors", tmp_path / "loras"
    check_equal(load_file(ended), load_file(straight / "stopped.safetensors"))


def test_only_the_main_process_writes(both):
    folder, said = both
    assert len(said[1]["apart"]["losses"]) == 4
    assert (folder / "apart0" / "loras" / "stopped.safetensors").exists()
    there = {
        p.relative_to(folder / "apart1").parts[:2] for p in (folder / "apart1").rglob("*") if p.is_file()
    }
    assert there == {("in-graph-lora", "cache")}
