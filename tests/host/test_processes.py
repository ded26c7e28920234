"""Two processes train the LoRA of one, stop together, and go on as any other number."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
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
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.runs.checkpoints import newest
from workbench.dev import base

from .loaded import write_pictures

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL"), pytest.mark.slow]

SIZES = [(64, 64), (128, 32), (64, 64), (64, 64), (128, 32)]
WORKER = Path(__file__).with_name("processes_worker.py")
COMMON = TrainConfig(
    name="test",
    steps=2,
    adapter=AdapterConfig(rank=2),
    objective=ObjectiveConfig(caption_dropout=0.3, noise_offset=0.05, input_perturbation=0.1),
    # A larger eps: where a gradient is next to nothing, Adam would make a step of its rounding.
    optimizer=OptimizerConfig(learning_rate=1e-3, accumulation=2, ema_decay=0.9, warmup_steps=1, eps=1e-4),
    data=DataConfig(resolution=64, batch_size=3),
    save=SaveConfig(every=1),
    memory=MemoryConfig(fit="manual"),
)
CONFIGS = {
    # Batches of 3, of two shapes, the last of an epoch short, by two processes: 5 pictures, one held out.
    "everything": replace(
        COMMON,
        name="everything",
        preview=PreviewConfig(prompts=("a figurine",), every=1, steps=1, cfg=1.0),
        validation=ValidationConfig(held_out=1, every=1, keep_best=True),
        prior=PriorConfig(method="class_images", class_prompt="a figurine", class_images=2, steps=1),
    ),
    "text": replace(
        COMMON,
        name="text",
        optimizer=replace(COMMON.optimizer, text_encoder_lr=5e-4, accumulation=1),
    ),
    "streamed": replace(
        COMMON,
        name="streamed",
        memory=MemoryConfig(fit="manual", streamed=1.0),
        prior=PriorConfig(method="output_preservation", class_prompt="a figurine"),
    ),
    # One picture a batch: the processes have different batches of a step.
    "stopped": replace(COMMON, data=DataConfig(resolution=64), name="stopped"),
    "resumed": replace(COMMON, name="resumed"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("processes") / "pictures", SIZES)


Said = dict[str, dict[str, Any]]
"""What a process says of each training, by its name."""


class Worker:
    """Starts processes that train."""

    def __init__(self, comfyui: Path, checkpoint: Path, folder: Path) -> None:
        self.folder, self._starts = folder, 0
        command = [sys.executable, WORKER, comfyui, base.prepare(folder / "base"), checkpoint]
        with (folder / "errors").open("w") as errors:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, size: int, *requests: Any) -> list[Said]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._starts += 1
        files = [self.folder / f"said{self._starts}-{rank}" for rank in range(size)]
        work = {"size": size, "port": port, "requests": requests, "said": [str(file) for file in files]}
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(work) + "\n")
        process.stdin.flush()
        assert process.stdout.readline(), (self.folder / "errors").read_text()[-3000:]
        lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        return [{line.pop("name"): line for line in own} for own in lines]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def worker(
    comfyui: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    running = Worker(comfyui, tiny_checkpoint, tmp_path_factory.mktemp("worker"))
    yield running
    running.close()


def request(config: TrainConfig, pictures: Sequence[Path], output: Sequence[Path], **more: Any) -> Any:
    return {
        "name": config.name,
        "config": config.to_dict(),
        "pictures": [str(path) for path in pictures],
        "output": [str(path) for path in output],
        **more,
    }


def step_reached(output: Path, name: str) -> int:
    (run,) = (output / "in-graph-lora" / name).iterdir()
    checkpoint, damaged = newest(run / "checkpoints")
    assert not damaged
    assert checkpoint is not None
    return checkpoint.step


def check_equal(said: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    own, theirs = load_file(said["path"]), load_file(other["path"])
    assert own.keys() == theirs.keys()
    far = max(float((own[name] - theirs[name]).abs().max()) for name in own)
    assert far <= 1e-6, far
    assert max(float(t.abs().max()) for name, t in own.items() if "up" in name) > 1e-4, "it has learned"
    assert said["losses"] == pytest.approx(other["losses"], abs=1e-5)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the trainings by two."""
    return tmp_path_factory.mktemp("both")


@pytest.fixture(scope="module")
def alone(worker: Worker, pictures: Path, output: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """The trainings by one process, in a folder of their own; one of them in that of the two, half."""
    folder = tmp_path_factory.mktemp("alone")
    whole = [request(config, [pictures], [folder]) for config in CONFIGS.values()]
    half = request(CONFIGS["resumed"], [pictures], [output], stop=[0, 1])
    (said,) = worker.run(1, *whole)
    ((_, begun),) = worker.run(1, half)[0].items()
    assert begun["stopped"]
    return said


@pytest.fixture(scope="module")
def both(worker: Worker, alone: Said, pictures: Path, output: Path) -> list[Said]:
    """All trainings that end in order, by two processes."""
    names = ["everything", "text", "streamed", "resumed"]
    requests = [request(CONFIGS[name], [pictures], [output]) for name in names]
    # The second process has a disk of its own.
    apart = [output, output.parent / "apart"]
    return worker.run(2, *requests, request(CONFIGS["stopped"], [pictures], apart, stop=[1, 1]))


@pytest.mark.parametrize("name", ["everything", "text", "streamed"])
def test_two_processes_train_the_lora_of_one(both, alone, name):
    assert [said[name]["steps"] for said in both] == [list(range(1, CONFIGS[name].steps + 1))] * 2
    assert both[0][name] == both[1][name], "all have the result"
    check_equal(both[0][name], alone[name])


def test_the_main_process_draws_measures_and_keeps_the_best_as_one_alone_does(both, alone, output):
    own, theirs = (Path(said["everything"]["run"]) for said in (both[0], alone))

    def files(run: Path) -> list[str]:
        found = [str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()]
        return sorted(name for name in found if "tensorboard" not in name)

    assert files(own) == files(theirs)
    assert len(list((output / "in-graph-lora" / "class-images").glob("*/*.png"))) == 2

    def held_out(run: Path) -> list[float]:
        events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
        return [e["loss"] for e in events if e["event"] == "Validated"]

    assert len(held_out(theirs)) == 3
    assert held_out(own) == pytest.approx(held_out(theirs), abs=1e-5)


def test_a_run_of_one_process_goes_on_with_two(both, alone):
    assert [said["resumed"]["steps"] for said in both] == [[2]] * 2
    check_equal(both[0]["resumed"], alone["resumed"])


def test_a_stop_on_one_stops_both_and_one_alone_goes_on(worker, both, alone, pictures, output):
    assert [(said["stopped"]["steps"], said["stopped"]["stopped"]) for said in both] == [([1], True)] * 2
    assert step_reached(output, "stopped") == 1
    (said,) = worker.run(1, request(CONFIGS["stopped"], [pictures], [output]))
    assert said["stopped"]["steps"] == [2]
    check_equal(said["stopped"], alone["stopped"])


def test_only_the_main_process_writes(both, output):
    apart = output.parent / "apart"
    there = {path.relative_to(apart).parts[:2] for path in apart.rglob("*") if path.is_file()}
    assert there == {("in-graph-lora", "cache")}


@pytest.mark.parametrize("fault", ["kill", "interrupt"])
def test_the_end_of_one_ends_the_other_and_the_work_is_kept(worker, fault, both, pictures, output):
    config = replace(CONFIGS["stopped"], name=fault, steps=3, save=SaveConfig(every=0))
    main, other = worker.run(2, request(config, [pictures], [output], **{fault: [1, 2]}))
    said = main[fault]
    if fault == "kill":
        assert not other
        assert said["error"] == "TrainingError"
        assert "has ended without a word; the same command goes on" in said["message"]
    else:
        assert said["error"] == other[fault]["error"] == "interrupted"
    assert said["steps"] == [1, 2]
    assert step_reached(output, fault) == 2, "nothing is lost"


def test_when_the_main_process_is_killed_the_other_says_so_and_the_state_is_whole(
    worker, both, pictures, output
):
    config = replace(CONFIGS["stopped"], name="main", steps=3)
    main, other = worker.run(2, request(config, [pictures], [output], kill=[0, 2]))
    assert not main
    assert other["main"]["error"] == "TrainingError"
    assert "goes on from the newest checkpoint" in other["main"]["message"]
    assert step_reached(output, "main") == 1
    (more,) = worker.run(1, request(config, [pictures], [output]))
    assert more["main"]["steps"] == [2, 3]


def test_another_dataset_on_one_machine_is_refused(worker, both, pictures, output, tmp_path):
    other = write_pictures(tmp_path / "pictures", SIZES)
    (other / "0.txt").write_text("another caption")
    config = replace(CONFIGS["stopped"], name="refused")
    main, second = worker.run(2, request(config, [pictures, other], [output]))
    assert (main["refused"]["error"], second["refused"]["error"]) == ("TrainingError", "ConfigError")
    assert "dataset: not the same as in process 0" in second["refused"]["message"]
    assert main["refused"]["message"].startswith("process 1 on ")
    assert second["refused"]["message"] in main["refused"]["message"]
    assert not (output / "in-graph-lora" / "refused").exists(), "nothing was begun"


def test_a_batch_that_is_too_small_to_be_shared_is_refused():
    config = TrainConfig(data=DataConfig(batch_size=2), optimizer=OptimizerConfig(accumulation=3))
    config.check_shared(6)
    with pytest.raises(ConfigError, match="raise batch_size to 7 or start fewer"):
        config.check_shared(7)
    assert [config.in_each_of(n).data.batch_size for n in (1, 2, 3, 4, 6)] == [2, 2, 2, 2, 1]
    assert [config.in_each_of(n).optimizer.accumulation for n in (1, 2, 3, 4, 6)] == [3, 2, 1, 1, 1]
