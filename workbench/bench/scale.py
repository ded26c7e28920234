"""`python -m workbench.bench.scale`: how much faster several processes train.

Measured: two processes of one thread against one, with the same global batch, on the generated SD1.5
checkpoint, in turns. On a machine that others use too the wall clock says more of them than of us; the
processor time of a process, of which waiting is no part, says what a step costs it: its share of the samples
and all it does for the exchange.

Simulated (`--simulate`): ring all-reduce over n machines, seconds = 2 (n - 1) (latency + bytes / n /
bandwidth) (Patarasuk and Yuan 2009), after the slowest of n whose steps differ by 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from .. import ROOT
from ..dev import host

STEPS, BATCH, PIXELS = 6, 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / ".cache/checkpoints/tiny-sd15.safetensors")
    args = parser.parse_args()
    if args.simulate:
        simulated()
    elif "IGL_SCALE" in os.environ:
        measure(args.checkpoint, Path(os.environ["IGL_SCALE"]))
    else:
        measured(args.checkpoint, args.rounds)


def measured(checkpoint: Path, rounds: int) -> None:
    print("round  1 process           2 processes         wall    processor")
    for n in range(1, rounds + 1):
        one, two = (_run(size, checkpoint) for size in (1, 2))
        wall, work = one["wall"] / two["wall"], one["work"] / two["work"]
        sides = (f"{s['wall']:6.3f} s ({s['work']:6.3f} s)" for s in (one, two))
        print(f"{n:5}  {'  '.join(sides)}  {wall:5.2f} x  {work:5.2f} x", flush=True)


def _run(size: int, checkpoint: Path) -> dict[str, float]:
    """Median seconds of a step; of the slowest process."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        command = [sys.executable, "-m", "workbench.bench.scale", "--checkpoint", str(checkpoint)]
        running = []
        for rank in range(size):
            env = {**os.environ, "IGL_SCALE": folder, "OMP_NUM_THREADS": "1"}
            if size > 1:
                env |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
                env |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": port}
            running.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True))
        said = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    return {name: max(own[name] for own in said) for name in said[0]}


def measure(checkpoint: Path, folder: Path) -> None:
    """In one of the processes."""
    host.register_pack()
    host.private_comfyui()
    import comfy.sd
    import folder_paths
    import torch
    from PIL import Image

    from in_graph_lora.trainer import config as settings
    from in_graph_lora.trainer.data.scan import scan_folder
    from in_graph_lora.trainer.events import StepDone
    from in_graph_lora.trainer.host.training import train_on_loaded
    from in_graph_lora.trainer.processes import join

    torch.set_num_threads(1)
    if "RANK" in os.environ:
        join()
    folder_paths.set_output_directory(str(folder / "output"))
    pictures = folder / os.environ.get("RANK", "0")
    pictures.mkdir()
    for i in range(BATCH):
        noise = torch.randint(
            0, 255, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)
        )
        Image.fromarray(noise.numpy()).resize((PIXELS, PIXELS)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("a toy")
    times: list[tuple[float, float]] = []

    def emit(event: Any) -> None:
        if isinstance(event, StepDone):
            times.append((time.perf_counter(), time.process_time()))

    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
        wishes = settings.TrainConfig(
            steps=STEPS,
            data=settings.DataConfig(batch_size=BATCH, resolution=PIXELS),
            memory=settings.MemoryConfig(fit="manual"),
            save=settings.SaveConfig(every=0),
        )
        train_on_loaded(model, clip, vae, scan_folder(pictures, resolution=PIXELS), wishes, emit)
    steps = list(zip(times, times[1:], strict=False))
    found = {name: median(b[i] - a[i] for a, b in steps) for i, name in enumerate(("wall", "work"))}
    print(json.dumps(found), flush=True)
    os._exit(0)


def simulated() -> None:
    import torch

    links = {"20 GB/s, as PCIe 4": (20e9, 10e-6), "25 GbE": (2.5e9, 50e-6), "10 GbE": (1e9, 50e-6)}
    print("gradients  step    link                   8 processes   64 processes")
    for bytes_ in (50e6, 200e6, 800e6):
        for seconds in (0.5, 2.0):
            for link, (bandwidth, latency) in links.items():
                found = []
                for n in (8, 64):
                    draws = torch.randn(2000, n, generator=torch.Generator().manual_seed(n))
                    slowest = float((seconds * (1 + 0.05 * draws)).max(dim=1).values.mean())
                    exchange = 2 * (n - 1) * (latency + bytes_ / n / bandwidth)
                    found.append(n * seconds / (slowest + exchange))
                sides = f"{found[0]:8.1f} x {found[1]:12.1f} x"
                print(f"{bytes_ / 1e6:6.0f} MB  {seconds:4.1f} s  {link:22} {sides}")


if __name__ == "__main__":
    main()
