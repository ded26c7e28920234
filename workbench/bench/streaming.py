"""`python dev.py bench --streaming`: what streaming costs where the device is the CPU.

Bytes moved and the ring's size are those of a GPU. Time is not: a copy within the memory stands for the way
to the card, and nothing computes meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .. import ROOT
from ..dev.results import Results
from .plan import ring

SHARES = (0, 0.5, 1)
MODELS = (("sd15", 128), ("few-flux", 128))
"""Name, pixels: the attention of few tokens, so that weights are what a step is about."""


def main(out: Path, rounds: int, threads: int, models: Sequence[tuple[str, int]] = MODELS) -> int:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "IGL_RESULTS": str(out)}
    for model, pixels in models:
        task = json.dumps(ring(model, pixels, SHARES, rounds))
        code = subprocess.call([sys.executable, "-m", "workbench.bench.case", task], cwd=ROOT, env=env)
        if code:
            print(f"{model}: its process ended with {code}")
    results = Results(out)
    print(f"\n{table(results.entries)}\n\nAll figures: {out}")
    return int(any(e["outcome"] != "measured" for e in results.entries.values()))


def table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Medians over the steps of all rounds; each share beside share 0 of the same model."""
    found: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for entry in entries.values():
        if "steps" in entry:
            share = entry["case"]["options"]["memory"]["streamed"]
            found.setdefault((entry["case"]["model"], share), []).append(entry)
    lines = [
        "| model | streamed | blocks away | their MiB | MiB of the ring | MiB moved / step | CPU s / step | "
        "time / resident |",
        "|" + " --- |" * 8,
    ]
    for (model, share), group in found.items():
        seconds, resident = _seconds(group), _seconds(found[model, 0])
        ring = group[0]["ring"] or {"blocks": 0, "away": 0, "arena": 0, "moved": 0}
        away, arena, moved = (f"{ring[name] / 2**20:.0f}" for name in ("away", "arena", "moved"))
        cells = (model, f"{share:g}", str(ring["blocks"]), away, arena, moved, f"{seconds:.2f}")
        lines.append(f"| {' | '.join(cells)} | {seconds / resident:.2f} |")
    return "\n".join(lines)


def _seconds(group: Sequence[Mapping[str, Any]]) -> float:
    return median(step["cpu"] for entry in group for step in entry["steps"])
