"""Encoding a dataset, with encoders that count: what is asked of them, and what stays in memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from in_graph_lora.trainer.config import TrainConfig
from in_graph_lora.trainer.data.cache import SampleCache
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.data.store import Entry, Store
from in_graph_lora.trainer.errors import DatasetError


class Vae:
    identity = "a"
    takes_controls = takes_masks = False
    control_kind = ""

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self.batches: list[tuple[int, ...]] = []
        """Shapes of what was encoded together, [B, H, W, 3]."""

    def at_once(self, pixels: Tensor) -> int:
        return self.most

    def encode(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        batch = torch.stack([*pixels])  # fails for pictures of different sizes
        self.batches.append(tuple(batch.shape))
        return [one.movedim(-1, 0)[:, ::8, ::8].clone() for one in batch]


class Texts:
    identity = network_identity = "a"
    told_crops = False

    def fitted(self, caption: str) -> str:
        return caption

    def traced(self, caption: str, latent: Tensor) -> tuple[Tensor, frozenset[str]]:
        return latent.mean() * torch.ones(4, 4), frozenset({"latent"})

    def pack(self, condition: Tensor) -> Entry:
        return Entry({"text": condition})

    def unpack(self, entry: Entry) -> Tensor:
        return entry.tensors["text"]


def write(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (i % 250, i // 250, 7)).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(f"picture {i}")
    return folder


def cache(folder: Path, vae: Vae, emit: Any = lambda event: None) -> SampleCache:
    return SampleCache(
        latents=vae,  # type: ignore[arg-type]
        texts=Texts(),  # type: ignore[arg-type]
        step=16,
        emit=emit,
        check_interrupt=lambda: None,
        store=Store(folder, emit),
    )


def live_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """What lives already is not looked at: a whole suite's objects take a second each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_objects")
def test_no_more_stays_in_memory_the_more_pictures_are_encoded(tmp_path: Path) -> None:
    counted: dict[str, list[int]] = {}

    def count(event: Any) -> None:
        counted.setdefault(event.name, []).append(live_tensors())

    before = live_tensors()
    dataset = scan_folder(write(tmp_path / "in", [(64, 64)] * 60), resolution=64)
    data = cache(tmp_path / "cache", Vae(), count).build(dataset, TrainConfig())
    assert len(data.samples) == 60
    assert len(counted["encoding pictures"]) == len(counted["encoding captions"]) == 60
    ahead = 2 * 8 + 4
    assert max(counted["encoding pictures"]) <= before + ahead, "pictures that threads have decoded"
    assert max(counted["encoding captions"]) <= before + 4
    assert live_tensors() <= before + 4


@pytest.mark.parametrize("most", [1, 3])
def test_pictures_of_one_size_are_encoded_together_and_each_gets_its_own(tmp_path: Path, most: int) -> None:
    sizes = [(128, 128), (256, 64), (128, 128), (128, 128), (256, 64), (128, 128), (128, 128)]
    dataset = scan_folder(write(tmp_path / "in", sizes), resolution=128)
    vae = Vae(most)
    data = cache(tmp_path / "cache", vae).build(dataset, TrainConfig())
    square, wide = (128, 128, 3), (64, 256, 3)
    together = {1: [(1, *square)] * 5 + [(1, *wide)] * 2, 3: [(3, *square), (2, *square), (2, *wide)]}
    assert vae.batches == together[most]
    for i, (sample, (width, height)) in enumerate(zip(data.samples, sizes, strict=True)):
        loaded = sample.load()
        assert loaded.latent.shape == (3, height // 8, width // 8)
        assert loaded.latent[0].unique().tolist() == pytest.approx([i / 255])
        assert loaded.caption == f"picture {i}"
    again = Vae(most)
    cache(tmp_path / "cache", again).build(dataset, TrainConfig())
    assert again.batches == []


def test_a_picture_that_breaks_in_a_batch_is_named_and_those_before_are_kept(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [(64, 64)] * 8)
    dataset = scan_folder(folder, resolution=64)
    (folder / "006.png").write_bytes(b"no picture any more")
    with pytest.raises(DatasetError, match="006.png"):
        cache(tmp_path / "cache", Vae(3)).build(dataset, TrainConfig())
    Image.new("RGB", (64, 64), (6, 0, 7)).save(folder / "006.png")
    vae = Vae(3)
    cache(tmp_path / "cache", vae).build(dataset, TrainConfig())
    assert sum(shape[0] for shape in vae.batches) == 2, "the first two batches of three were kept"
