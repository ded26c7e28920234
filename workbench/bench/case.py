"""One case in a process of its own, so that peaks do not mix: its last line is the results in JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dev import host

if TYPE_CHECKING:
    from ..bench.meter import Turns


def main() -> None:
    task = json.loads(sys.argv[1])
    _first_to_be_killed()
    import torch

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as base:
        host.import_comfyui(Path(os.environ["IGL_COMFYUI"]), Path(base), cpu=not torch.cuda.is_available())
        host.register_pack()
        print(json.dumps(measure(task)))


def measure(task: dict[str, Any]) -> list[dict[str, Any]]:
    """One result for each of the task's trainers; several take turns, one step each."""
    from ..bench.contenders import TRAINERS, Job
    from ..bench.meter import Turns
    from ..bench.models import MODELS

    file = MODELS[task["model"]].write(Path(task["file"]))
    trainers = []
    for entry in task["trainers"]:
        job = Job(
            model=task["model"],
            file=file,
            resolution=task["resolution"],
            batch=task["batch"],
            steps=task["warmup"] + task["steps"],
            rank=task["rank"],
            options=entry["options"],
        )
        trainers.append(TRAINERS[entry["trainer"]](job))
        trainers[-1].forward()
    if len(trainers) == 1:
        return [_run(trainers[0], task, lambda: None)]
    turns = Turns(len(trainers))
    with ThreadPoolExecutor(len(trainers)) as threads:
        running = [threads.submit(_run_in_turn, t, task, turns, i) for i, t in enumerate(trainers)]
        turns.start()
        return [r.result() for r in running]


def _run_in_turn(trainer: Any, task: dict[str, Any], turns: Turns, i: int) -> dict[str, Any]:
    def pause() -> None:
        turns.hand_on(i)
        turns.wait(i)

    turns.wait(i)
    try:
        return _run(trainer, task, pause)
    finally:
        turns.leave(i)


def _run(trainer: Any, task: dict[str, Any], pause: Callable[[], None]) -> dict[str, Any]:
    from ..bench.meter import Meter

    with Meter(trainer.net, trainer.device, trainer.forward, pause) as meter:
        adapted = trainer.train()
    measured = slice(task["warmup"], None)
    return {
        "device": _device_name(trainer.device),
        "steps": [asdict(d) for d in meter.steps[measured]],
        "floors": [asdict(d) for d in meter.floors[measured]],
        "added_memory": meter.added_memory,
        "samples": meter.samples,
        "layers": adapted.layers,
        "parameters": adapted.parameters,
    }


def _device_name(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _first_to_be_killed() -> None:
    """Where memory runs out it should be this process that goes, and not another of this machine's."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


if __name__ == "__main__":
    main()
