"""One process of the benchmark, so that peaks do not mix.

Tasks with trainers that take turns print their results as the last line, in JSON. Tasks of `plan.py` hold one
trainer and several cases; each result goes into the file named by IGL_RESULTS as soon as there is one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dev import host
from ..dev.results import Results

if TYPE_CHECKING:
    from ..bench.meter import Turns


def main() -> None:
    task = json.loads(sys.argv[1])
    _first_to_be_killed()
    import torch

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as base:
        host.register_pack()
        if task.get("cap") and torch.cuda.is_available():
            from ..bench.meter import cap

            cap(task["cap"])  # before ComfyUI asks how much there is
        host.import_comfyui(Path(os.environ["IGL_COMFYUI"]), Path(base), cpu=not torch.cuda.is_available())
        if "cases" in task:
            measure_each(task, Results(Path(os.environ["IGL_RESULTS"])))
        else:
            print(json.dumps(measure(task)))


def measure(task: dict[str, Any]) -> list[dict[str, Any]]:
    """One result for each of the task's trainers; several take turns, one step each."""
    from ..bench.meter import Turns

    trainers = [_trainer({**task, **entry}) for entry in task["trainers"]]
    for trainer in trainers:
        trainer.forward()
    if len(trainers) == 1:
        return [_run(trainers[0], task, lambda: None)]
    turns = Turns(len(trainers))
    with ThreadPoolExecutor(len(trainers)) as threads:
        running = [threads.submit(_run_in_turn, t, task, turns, i) for i, t in enumerate(trainers)]
        turns.start()
        return [r.result() for r in running]


def measure_each(task: dict[str, Any], results: Results) -> None:
    """A case that does not fit is a result; the next one is tried all the same."""
    import torch

    from ..bench.meter import MatrixRate
    from ..bench.models import forward_flops

    rate = None
    for case in task["cases"]:
        if results.done(case["name"]):
            continue
        about = {k: v for k, v in {**task, **case}.items() if k not in ("cases", "limit", "name", "title")}
        results.put(case["name"], "started")
        try:
            trainer = _trainer(about)
            rate = rate or MatrixRate(trainer.device).flops_per_second
            found = _run(trainer, task, lambda: None, floors=False)
            found["flops"] = 2 * forward_flops(task["model"], case["batch"], case["resolution"])
            results.put(case["name"], "measured", case=about, **found, matrix_rate=rate)
        except torch.OutOfMemoryError as error:
            results.put(case["name"], "measured", case=about, failure="out of memory", why=str(error)[:500])
        except Exception as error:  # noqa: BLE001 - whatever it is, the cases after it are measured
            why = f"{traceback.format_exc()[-2000:]}\n{error!r}"
            results.put(case["name"], "failed", case=about, why=why)
        trainer = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _trainer(about: dict[str, Any]) -> Any:
    from ..bench.contenders import TRAINERS, Job

    return TRAINERS[about["trainer"]](
        Job(
            model=about["model"],
            resolution=about["resolution"],
            batch=about["batch"],
            steps=about["warmup"] + about["steps"],
            rank=about["rank"],
            options=about["options"],
        )
    )


def _run_in_turn(trainer: Any, task: dict[str, Any], turns: Turns, i: int) -> dict[str, Any]:
    def pause() -> None:
        turns.hand_on(i)
        turns.wait(i)

    turns.wait(i)
    try:
        return _run(trainer, task, pause)
    finally:
        turns.leave(i)


def _run(
    trainer: Any, task: dict[str, Any], pause: Callable[[], None], *, floors: bool = True
) -> dict[str, Any]:
    from ..bench.meter import Meter

    if hasattr(trainer, "prepare"):
        trainer.prepare()
    with Meter(trainer.net, trainer.device, trainer.forward if floors else None, pause) as meter:
        adapted = trainer.train()
    measured = slice(task["warmup"], None)
    rings = getattr(trainer, "rings", None)
    return {
        "device": _device_name(trainer.device),
        "steps": [asdict(d) for d in meter.steps[measured]],
        "floors": [asdict(d) for d in meter.floors[measured]],
        "added_memory": meter.added_memory,
        "peak_memory": meter.peak_memory,
        "reserved_memory": meter.reserved_memory,
        "samples": meter.samples,
        "layers": adapted.layers,
        "parameters": adapted.parameters,
        "plan": getattr(trainer, "plan", None),
        "ring": rings.figures(len(meter.steps)) if rings and rings.made else None,
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
