"""What is measured on a GPU, most important first: `python dev.py gpu` runs it.

A task is a process: one model and one trainer, with and without a cap on the card's memory. Prints the tasks
in JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

LEAN = {"checkpointing": 1}
OURS = {"memory": LEAN}
AUTO: dict[str, Any] = {"memory": {"fit": "auto"}}
"""The levers are chosen by the plan."""
CORE: dict[str, Any] = {}
"""Its defaults: gradient checkpointing is on."""
DIFFUSERS = {"checkpointing": True}

Cases = Sequence[tuple[int, int]]
"""Pixels and batch size."""
SMALL: Cases = ((512, 1), (512, 4))
LARGE: Cases = ((1024, 1), (1024, 4))
BOTH: Cases = (*SMALL, *LARGE)


def task(
    model: str, trainer: str, cases: Cases, options: dict[str, Any], *, cap: float = 0, steps: int = 4
) -> dict[str, Any]:
    """cap: GB of the card that torch may use; 0: all of it."""
    memory = options.get("memory", {})
    levers = ", ".join(f"{name} {value}" for name, value in memory.items() if name != "checkpointing")
    title = f"bench {model}, {trainer}" + (f", {cap:g} GB" if cap else "") + (f", {levers}" if levers else "")
    return {
        "title": title,
        "limit": 300,
        "model": model,
        "trainer": trainer,
        "options": options,
        "cap": cap,
        "rank": 16,
        "warmup": 2,
        "steps": steps,
        "cases": [
            {"name": f"{title}, {pixels} px, batch {batch}", "resolution": pixels, "batch": batch}
            for pixels, batch in cases
        ],
    }


def streamed(share: float, **more: Any) -> dict[str, Any]:
    return {"memory": {"streamed": share, **LEAN, **more}}


def on_a_gpu() -> list[dict[str, Any]]:
    """The goals; all of ours; the others beside it; other caps."""
    one: Cases = ((1024, 1),)
    return [
        task("flux", "ours", BOTH, OURS),
        task("sdxl", "ours", one, OURS, cap=8),
        task("flux", "ours", one, streamed(0.8), cap=12),
        task("qwen", "ours", ((512, 1),), streamed(0.75), cap=16),
        task("flux", "ours", one, streamed(0.6, base_precision="fp8"), cap=12),
        task("sdxl", "ours", one, AUTO, cap=8),
        *[task("flux", "ours", one, AUTO, cap=cap) for cap in (12, 16, 24)],
        task("qwen", "ours", ((512, 1),), AUTO, cap=16),
        task("sdxl", "ours", LARGE, OURS),
        task("sd15", "ours", SMALL, OURS),
        task("sdxl", "core", LARGE, CORE),
        task("sdxl", "diffusers", LARGE, DIFFUSERS),
        task("sd15", "core", SMALL, CORE),
        task("sd15", "diffusers", SMALL, DIFFUSERS),
        task("flux", "diffusers", BOTH, DIFFUSERS),
        task("flux", "core", BOTH, CORE),
        task("qwen", "ours", BOTH, OURS),
        task("qwen", "diffusers", BOTH, DIFFUSERS),
        task("qwen", "core", BOTH, CORE),
        *[task("sdxl", "core", one, CORE, cap=cap) for cap in (8, 12)],
        *[task("flux", "core", one, CORE, cap=cap) for cap in (12, 16, 24)],
        task("flux", "ours", one, streamed(1.0), cap=8),
        task("flux", "ours", one, streamed(0.6), cap=16),
        task("flux", "ours", one, streamed(0.3), cap=24),
        task("qwen", "ours", ((512, 1), (1024, 1)), streamed(0.6), cap=24),
        task("qwen", "ours", ((512, 1),), streamed(1.0), cap=12),
        task("qwen", "ours", ((512, 1),), streamed(1.0), cap=8),
        *[task("sdxl", "ours", LARGE, OURS, cap=cap) for cap in (12, 16, 24)],
        *[task("sd15", "ours", SMALL, OURS, cap=cap) for cap in (8, 12)],
    ]


def rehearsed() -> list[dict[str, Any]]:
    """The same code, at sizes for a CPU."""
    cases: Cases = ((64, 1), (64, 2))
    tasks = []
    for model in ("tiny", "tiny-flux", "tiny-qwen"):
        tasks.append(task(model, "ours", cases, OURS, steps=1))
        tasks.append(task(model, "ours", cases[:1], streamed(1.0), cap=8, steps=1))
        tasks.append(task(model, "ours", cases[:1], AUTO, cap=8, steps=1))
        tasks.append(task(model, "core", cases, CORE, steps=1))
        tasks.append(task(model, "diffusers", cases, DIFFUSERS, steps=1))
    return tasks


def ring(model: str, pixels: int, shares: Sequence[float], rounds: int) -> dict[str, Any]:
    """Streaming where the device is the CPU: copies cost what copying within the memory costs."""
    made = task(model, "ours", ((pixels, 1),), OURS, steps=2)
    (case,) = made["cases"]
    made["cases"] = [
        {**case, "name": f"{case['name']}, streamed {share:g}, round {i}", "options": streamed(share)}
        for i in range(rounds)
        for share in shares
    ]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the tasks of the benchmark on a GPU.")
    parser.add_argument("--tiny", action="store_true", help="at sizes for a CPU")
    print(json.dumps(rehearsed() if parser.parse_args().tiny else on_a_gpu()))


if __name__ == "__main__":
    main()
