"""`python dev.py bench`: time and memory of a training step, ours beside ComfyUI's own and diffusers'.

Each case runs in a process of its own. The trainers take turns, so that a machine that gets slower in between
slows them all.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import ROOT
from ..bench import data, gpu_table, streaming
from ..bench.table import Row, markdown, targets
from ..dev.results import Results

EVERY_MATRIX = "regex:."


@dataclass(frozen=True)
class Entry:
    """A trainer with its settings."""

    name: str
    trainer: str
    adapts: str
    options: dict[str, Any] = field(default_factory=dict)


FP32 = {"training_dtype": "fp32", "lora_dtype": "fp32"}
ENTRIES = (
    Entry("core", "core", "every weight, norm, bias"),
    Entry("diffusers", "diffusers", "attention"),
    Entry("ours", "ours", "attention"),
    Entry("core fp32", "core", "every weight, norm, bias", FP32),
    Entry("ours, all layers", "ours", "every matrix and convolution", {"targets": EVERY_MATRIX}),
    Entry("diffusers, all layers", "diffusers", "every matrix and convolution", {"targets": "all"}),
)
"""The first three are each trainer at its defaults; of these the second and the third adapt the same layers.
The core node cannot leave layers out, so beside it stand the others with all that they can adapt."""

IN_TURN = "in turn"
"""Two rows more: the loop of diffusers and ours in one process, a step of one and a step of the other."""


OTHERS = {"--adapters": ".adapters", "--cards": ".cards"}
"""Benchmarks with arguments of their own."""


def main() -> int:
    for option, module in OTHERS.items():
        if option in sys.argv:
            return importlib.import_module(module, __package__).run()
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", help="tiny, sd15, sdxl, flux; default: what the device can do")
    parser.add_argument("--resolutions", nargs="+", type=int, help="pixels; default: 256, on a GPU 512 1024")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--trainers", nargs="+", metavar="NAME", help="some of the table's; default: all")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=1, help="steps before the measured ones")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; 1 is disturbed least by others")
    parser.add_argument("--quick", action="store_true", help="does it run? A small model, two steps")
    parser.add_argument("--streaming", action="store_true", help="only what streaming costs on the CPU")
    parser.add_argument(
        "--data", action="store_true", help="only what a dataset costs until it is trained on"
    )
    parser.add_argument("--pictures", nargs="+", type=int, help="with --data; default: 100 1000 10000")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of dev.py gpu")
    parser.add_argument("--out", type=Path, help="default: bench-<time>.json in the project's folder")
    args = parser.parse_args()
    if args.table:
        print(gpu_table.table(Results(args.table).entries))
        return 0
    out = args.out or ROOT / time.strftime("bench-%Y%m%d-%H%M%S.json")
    if args.streaming:
        return streaming.main(out, args.rounds, args.threads)
    if args.data:
        return data.main(out, args.threads, args.pictures or data.SIZES)
    names = [*(e.name for e in ENTRIES), IN_TURN]
    args.trainers = args.trainers or ([*names[:3], IN_TURN] if args.quick else names)
    if unknown := set(args.trainers) - set(names):
        parser.error(f"no trainer {', '.join(unknown)}; there are {'; '.join(names)}")
    if args.quick:
        args.models, args.resolutions, args.batches, args.steps = ["tiny"], [64], [2], 1
    gpu = _has_gpu()
    args.models = args.models or (["sd15", "sdxl", "flux"] if gpu else ["sd15"])
    args.resolutions = args.resolutions or ([512, 1024] if gpu else [256])
    rows: dict[tuple, Row] = {}
    try:
        for row in measure(args, "wall" if gpu else "cpu"):
            key = (*row.case, row.trainer)
            if key in rows:
                row = replace(row, results=[*rows[key].results, *row.results])
            rows[key] = row
            out.write_text(json.dumps([r.to_dict() for r in rows.values()], indent=1), encoding="utf-8")
    except KeyboardInterrupt:
        print("stopped; what was measured:")
    done = sorted(rows.values(), key=lambda r: r.case)
    print(f"\n{markdown(done)}\n\n{targets(done)}\n\nAll figures: {out}")
    return any(r.failure for r in done)


def measure(args: argparse.Namespace, clock: str) -> Iterator[Row]:
    cases = itertools.product(range(args.rounds), args.models, args.resolutions, args.batches)
    for _, model, resolution, batch in cases:
        for entries in groups(args.trainers):
            rows = [
                Row(
                    model=model,
                    resolution=resolution,
                    trainer=entry.name,
                    adapts=entry.adapts,
                    batch=batch,
                    clock=clock,
                )
                for entry in entries
            ]
            yield from run_case(rows, entries, args)


def groups(names: Sequence[str]) -> list[list[Entry]]:
    """What runs in one process."""
    out = [[entry] for entry in ENTRIES if entry.name in names]
    if IN_TURN in names:
        out.append([replace(e, name=f"{e.name}, {IN_TURN}") for e in ENTRIES[1:3]])
    return out


def run_case(rows: list[Row], entries: list[Entry], args: argparse.Namespace) -> list[Row]:
    first = rows[0]
    task = {
        "model": first.model,
        "trainers": [{"trainer": e.trainer, "options": e.options} for e in entries],
        "resolution": first.resolution,
        "batch": first.batch,
        "warmup": args.warmup,
        "steps": args.steps,
        "rank": args.rank,
    }
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    done = subprocess.run(
        [sys.executable, "-m", "workbench.bench.case", json.dumps(task)],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        killed = done.returncode in (-9, 137)
        lines = done.stderr.strip().splitlines() or ["failed"]
        why = "out of memory" if killed else lines[-1][:200]
        return [said(replace(row, failure=why), f"FAILED ({why})") for row in rows]
    results = json.loads(done.stdout.splitlines()[-1])
    out = [replace(row, results=[result]) for row, result in zip(rows, results, strict=True)]
    return [said(row, f"{row.seconds:.2f} s, {row.over_floor:.2f} × floor") for row in out]


def said(row: Row, outcome: str) -> Row:
    print(f"{row.model} {row.resolution} px, batch {row.batch}, {row.trainer}: {outcome}", flush=True)
    return row


def _has_gpu() -> bool:
    check = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
