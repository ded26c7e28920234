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
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.events import StepDone
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
        name="everything",
        preview=PreviewConfig(prompts=("a figurine",), every=2, steps=1, cfg=1.0),
        validation=ValidationConfig(held_out=1, every=2, keep_best=True),
        prior=PriorConfig(method="class_images", class_prompt="a figurine", class_images=2, steps=1),
    ),
    "text": replace(
        COMMON,
        name="text",
        steps=2,
        optimizer=replace(COMMON.optimizer, text_encoder_lr=5e-4, accumulation=1),
    ),
    "streamed": replace(
        COMMON,
        name="streamed",
        steps=2,
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
    """The same trainings in this process, each once."""

    def __init__(self, loaded: Loaded, pictures: Path, output: Path) -> None:
        self.loaded, self.pictures, self.output = loaded, pictures, output
        self._done: dict[str, Any] = {}

    def result(self, name: str) -> Any:
        if name not in self._done:
            self._done[name] = self.train(CONFIGS[name], self.output)
        return self._done[name]

    def lora(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.result(name).path)

    def train(self, config: TrainConfig, output: Path, stop_at: int = 0) -> Any:
        steps = []

        def emit(event: Any) -> None:
            if isinstance(event, StepDone):
                steps.append(event.step)

        before = folder_paths.output_directory
        folder_paths.output_directory = str(output)
        try:
            with torch.inference_mode():
                return train_on_loaded(
                    *(self.loaded.model, self.loaded.clip, self.loaded.vae),
                    *(scan_folder(self.pictures, resolution=64), config, emit),
                    stop_requested=lambda: bool(stop_at) and stop_at in steps,
                )
        finally:
            folder_paths.output_directory = before


@pytest.fixture(scope="module")
def alone(loaded: Loaded, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(loaded, pictures, tmp_path_factory.mktemp("alone"))


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


def request(config: TrainConfig, pictures: Sequence[Path], output: Sequence[Path], **more: Any) -> Any:
    return {
        "name": config.name,
        "config": config.to_dict(),
        "pictures": [str(path) for path in pictures],
        "output": [str(path) for path in output],
        **more,
    }


def run_of(output: Path, name: str) -> Path:
    (run,) = (output / "in-graph-lora" / name).iterdir()
    return run


def lora_of(output: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(output / "loras" / f"{name}.safetensors")


def step_reached(run: Path) -> int:
    checkpoint, damaged = newest(run / "checkpoints")
    assert not damaged
    assert checkpoint is not None
    return checkpoint.step


def check_equal(own: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert own.keys() == other.keys()
    far = max(float((own[name] - other[name]).abs().max()) for name in own)
    assert far <= 1e-6, far
    assert max(float(t.abs().max()) for name, t in own.items() if "up" in name) > 1e-4, "it has learned"


@pytest.fixture(scope="module")
def both(alone, pictures, comfyui, tiny_checkpoint, tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """(output, what each process said) of all trainings that end in order, in one start of two."""
    folder = tmp_path_factory.mktemp("both")
    output = folder / "output"
    alone.train(CONFIGS["resumed"], output, stop_at=2)
    assert step_reached(run_of(output, "resumed")) == 2
    names = ["everything", "text", "streamed", "resumed"]
    requests = [request(CONFIGS[name], [pictures], [output]) for name in names]
    # The second process has a disk of its own.
    requests.append(request(CONFIGS["stopped"], [pictures], [output, folder / "apart"], stop=[1, 2]))
    return output, together(folder, comfyui, tiny_checkpoint, requests)


@pytest.mark.parametrize("name", ["everything", "text", "streamed"])
def test_two_processes_train_the_lora_of_one(both, alone, name):
    output, said = both
    check_equal(lora_of(output, name), alone.lora(name))
    assert [s[name]["steps"] for s in said] == [list(range(1, CONFIGS[name].steps + 1))] * 2
    assert said[0][name] == said[1][name], "all have the result"
    assert said[0][name]["losses"] == pytest.approx(alone.result(name).losses, abs=1e-5)


def test_the_main_process_draws_measures_and_keeps_the_best_as_one_alone_does(both, alone):
    alone.result("everything")
    own, theirs = (run_of(output, "everything") for output in (both[0], alone.output))

    def files(run: Path) -> list[str]:
        return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file())

    assert [f for f in files(own) if "tensorboard" not in f] == [
        f for f in files(theirs) if "tensorboard" not in f
    ]
    assert len(list((both[0] / "in-graph-lora" / "class-images").glob("*/*.png"))) == 2

    def held_out(run: Path) -> list[float]:
        events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
        return [e["loss"] for e in events if e["event"] == "Validated"]

    assert len(held_out(theirs)) == 3
    assert held_out(own) == pytest.approx(held_out(theirs), abs=1e-5)


def test_a_run_of_one_process_goes_on_with_two(both, alone):
    output, said = both
    assert [s["resumed"]["steps"] for s in said] == [[3, 4]] * 2
    check_equal(load_file(said[0]["resumed"]["path"]), alone.lora("resumed"))


def test_a_stop_on_one_stops_both_and_one_alone_goes_on(both, alone):
    output, said = both
    assert [(s["stopped"]["steps"], s["stopped"]["stopped"]) for s in said] == [([1, 2], True)] * 2
    assert step_reached(run_of(output, "stopped")) == 2
    ended = alone.train(CONFIGS["stopped"], output)
    assert len(ended.losses) == 4
    check_equal(load_file(ended.path), alone.lora("stopped"))


def test_only_the_main_process_writes(both):
    apart = both[0].parent / "apart"
    there = {path.relative_to(apart).parts[:2] for path in apart.rglob("*") if path.is_file()}
    assert there == {("in-graph-lora", "cache")}


@pytest.mark.parametrize("fault", ["kill", "interrupt"])
def test_the_end_of_one_ends_the_other_and_the_work_is_kept(
    fault, alone, both, pictures, comfyui, tiny_checkpoint, tmp_path
):
    output = both[0]
    config = replace(CONFIGS["stopped"], name=fault, steps=6)
    asked = request(config, [pictures], [output], **{fault: [1, 3]})
    main, other = together(tmp_path, comfyui, tiny_checkpoint, [asked])
    said = main[fault]
    if fault == "kill":
        assert not other
        assert said["error"] == "TrainingError"
        assert "has ended without a word; what was trained is kept" in said["message"]
    else:
        assert said["error"] == other[fault]["error"] == "interrupted"
    reached = step_reached(run_of(output, fault))
    assert reached in (3, said["steps"][-1])
    assert reached == said["steps"][-1], "nothing is lost"
    assert len(alone.train(config, output).losses) == 6


def test_another_dataset_on_one_machine_is_refused(both, pictures, comfyui, tiny_checkpoint, tmp_path):
    other = write_pictures(tmp_path / "pictures", [(64, 64), (128, 32), (64, 64), (64, 64), (128, 32)])
    (other / "0.txt").write_text("another caption")
    config = replace(CONFIGS["stopped"], name="refused")
    asked = request(config, [pictures, other], [both[0]])
    said = [s["refused"] for s in together(tmp_path, comfyui, tiny_checkpoint, [asked])]
    assert [s["error"] for s in said] == ["TrainingError", "ConfigError"]
    assert "dataset: not the same as in process 0" in said[1]["message"]
    assert said[0]["message"].startswith("process 1 on ")
    assert said[1]["message"] in said[0]["message"]
    assert not (both[0] / "in-graph-lora" / "refused").exists(), "nothing was begun"


def test_a_batch_that_is_too_small_to_be_shared_is_refused():
    config = TrainConfig(data=DataConfig(batch_size=2), optimizer=OptimizerConfig(accumulation=3))
    config.check_shared(6)
    with pytest.raises(ConfigError, match="raise batch_size to 7 or start fewer"):
        config.check_shared(7)
    assert [config.in_each_of(n).data.batch_size for n in (1, 2, 3, 4, 6)] == [2, 2, 2, 2, 1]
    assert [config.in_each_of(n).optimizer.accumulation for n in (1, 2, 3, 4, 6)] == [3, 2, 1, 1, 1]
