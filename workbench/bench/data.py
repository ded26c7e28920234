"""`python dev.py bench --data`: encoding a dataset, finding it again, and an epoch of its batches.

Pictures are generated; VAE and text encoder are tiny stand-ins that give latents and conditions of SD 1.5's
shapes, so what is measured is everything around them: decoding, resizing, keys, files, order, loading.
Beside it stands the loop of diffusers' text-to-image script over the same folder: a torch DataLoader over an
image folder with torchvision's transforms, which encodes in every epoch and keeps nothing.

Each case runs in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import ROOT

SIZES = (100, 1_000, 10_000)
SIDE, BATCH = 128, 4
OURS, AGAIN, LOOP = "ours, first", "ours, again", "diffusers-style loop"


def main(out: Path, threads: int, sizes: Sequence[int] = SIZES) -> int:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    rows = []
    for count in sizes:
        with tempfile.TemporaryDirectory() as work:
            write_pictures(Path(work) / "pictures", count)
            for case in (OURS, AGAIN, LOOP):
                task = json.dumps({"case": case, "count": count, "work": work})
                done = subprocess.run(
                    [sys.executable, "-m", "workbench.bench.data", task],
                    cwd=ROOT, env=env, capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode:
                    print(f"{case}, {count} pictures: FAILED\n{done.stderr[-1500:]}")
                    return 1
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{case}, {count} pictures: {rows[-1]}", flush=True)
                out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(f"\n{table(rows)}\n\nAll figures: {out}")
    return 0


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """ready: from the scanned folder to the first batch can be asked for."""
    lines = [
        "| pictures | | encoded | s until ready | pictures / s | s of an epoch | added MiB | MB on disk |",
        "|" + " --- |" * 8,
    ]
    for r in rows:
        busy = r["epoch"] if r["case"] == LOOP else r["ready"]
        rate = f"{r['encoded'] / busy:.0f}" if r["encoded"] else "–"
        disk = f"{r['disk'] / 1e6:.0f}" if r["disk"] else "–"
        cells = (
            *(str(r["count"]), r["case"], str(r["encoded"]), f"{r['ready']:.1f}", rate),
            *(f"{r['epoch']:.1f}", f"{r['added_memory'] / 2**20:.0f}", disk),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_pictures(folder: Path, count: int) -> None:
    """JPEG files of 192 × 160 pixels, each with a caption of its own."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        coarse.resize((192, 160), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)
        (folder / f"{i:05d}.txt").write_text(f"picture {i} of something", encoding="utf-8")


class Vae(nn.Module):
    """[3, H, W] to [4, H/8, W/8]."""

    identity = "the benchmark's VAE"
    takes_controls = takes_masks = False
    control_kind = ""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Conv2d(3, 4, 8, stride=8)
        self.encoded = 0

    def at_once(self, pixels: Tensor) -> int:
        return 1

    @torch.no_grad()
    def encode(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        self.encoded += len(pixels)
        return [self.net(one.movedim(-1, 0)[None])[0] for one in pixels]


class Texts:
    """[1, 77, 768] for a caption."""

    identity = network_identity = "the benchmark's text encoder"
    told_crops = False

    def fitted(self, caption: str) -> str:
        return caption

    def encode(self, caption: str, latent: Tensor | None = None) -> Tensor:
        seed = int.from_bytes(caption.encode()[-8:].rjust(8), "little", signed=True)
        return torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed))

    def traced(self, caption: str, latent: Tensor) -> tuple[Tensor, frozenset[str]]:
        return self.encode(caption), frozenset()

    def pack(self, condition: Tensor) -> Any:
        from in_graph_lora.trainer.data.store import Entry

        return Entry({"text": condition})

    def unpack(self, entry: Any) -> Tensor:
        return entry.tensors["text"]


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def ours(work: Path) -> dict[str, Any]:
    from in_graph_lora.trainer.config import DataConfig, TrainConfig
    from in_graph_lora.trainer.data.batches import micro_batches
    from in_graph_lora.trainer.data.cache import SampleCache
    from in_graph_lora.trainer.data.prefetch import prefetched
    from in_graph_lora.trainer.data.scan import scan_folder
    from in_graph_lora.trainer.data.store import Store, usage

    from .meter import Memory

    dataset = scan_folder(work / "pictures", resolution=SIDE)
    memory, vae = Memory(torch.device("cpu")), Vae()
    config = TrainConfig(data=DataConfig(batch_size=BATCH, resolution=SIDE))

    def build() -> Any:
        store = Store(work / "cache", lambda event: None)
        cache = SampleCache(
            latents=vae, texts=Texts(), step=64, emit=lambda event: None, check_interrupt=lambda: None,
            store=store,
        )  # fmt: skip
        return cache.build(dataset, config)

    def epoch() -> None:
        order = micro_batches(data.samples, (), BATCH, 0)
        batches = prefetched(order, lambda: None)
        for batch in islice(batches, -(-len(data.samples) // BATCH)):
            assert batch.samples[0].conditioning.shape == (1, 77, 768)
        batches.close()

    ready, data = seconds_of(build)
    took, _ = seconds_of(epoch)
    return {
        "encoded": vae.encoded, "ready": ready, "epoch": took, "added_memory": memory.peak() - memory.start,
        "disk": usage(work / "cache")[1],
    }  # fmt: skip


def diffusers_loop(work: Path) -> dict[str, Any]:
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from .meter import Memory

    torch.manual_seed(0)
    vae, texts = Vae(), Texts()
    resized = transforms.Compose(
        [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.ToTensor()]
    )

    class Folder(Dataset):
        def __init__(self) -> None:
            self.paths = sorted((work / "pictures").glob("*.jpg"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, i: int) -> tuple[Tensor, str]:
            with Image.open(self.paths[i]) as image:
                pixels = resized(image.convert("RGB"))
            return pixels, self.paths[i].with_suffix(".txt").read_text(encoding="utf-8")

    memory = Memory(torch.device("cpu"))
    ready, loader = seconds_of(lambda: DataLoader(Folder(), batch_size=BATCH, shuffle=True))

    @torch.no_grad()
    def epoch() -> None:
        for pixels, captions in loader:
            vae.net(pixels)
            vae.encoded += len(pixels)
            torch.cat([texts.encode(caption) for caption in captions])

    took, _ = seconds_of(epoch)
    return {
        "encoded": vae.encoded, "ready": ready, "epoch": took, "added_memory": memory.peak() - memory.start,
        "disk": 0,
    }  # fmt: skip


if __name__ == "__main__":
    from ..dev.host import register_pack

    register_pack()
    asked = json.loads(sys.argv[1])
    run = diffusers_loop if asked["case"] == LOOP else ours
    print(json.dumps({"case": asked["case"], "count": asked["count"], **run(Path(asked["work"]))}))
