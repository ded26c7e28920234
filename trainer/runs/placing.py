"""Where a run's result goes: the LoRA to the LoRAs, the embedding to the embeddings, under one name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..adapters.lora_file import read_lora
from ..config import TrainConfig
from ..embedding import embedding_data, embedding_of
from ..errors import LoraFileError
from ..files import sha256, write_as_new


@dataclass(frozen=True, kw_only=True)
class Places:
    loras: Path
    embeddings: Path

    def result(self, config: TrainConfig, name: str) -> Path:
        """What a run gives first: its LoRA, or its embedding where it trains no LoRA."""
        return (self.loras if config.trains_lora else self.embeddings) / name

    def embedding(self, config: TrainConfig, name: str) -> Path | None:
        return self.embeddings / name if config.embedding.vectors else None

    def put(self, source: Path, config: TrainConfig, before: Callable[[Path], None]) -> str:
        """Write what a checkpoint's file holds, and nothing over another file. Returns the files' name.

        before: is told the path of the result before anything is there.
        """
        files = {self.loras: source.read_bytes()} if config.trains_lora else {}
        if config.embedding.vectors:
            files[self.embeddings] = embedding_data(source)
        return write_as_new(files, config.name, source.suffix, lambda name: before(self.result(config, name)))

    def hold(self, source: Path, config: TrainConfig, name: str) -> bool:
        """Whether all that `put` would write is there under this name."""
        lora, embedding = self.loras / name, self.embedding(config, name)
        if config.trains_lora and sha256(lora) != sha256(source):
            return False
        try:
            return embedding is None or _same(read_lora(embedding), embedding_of(source))
        except LoraFileError:
            return False


def _same(one: tuple[dict, dict], other: tuple[dict, dict]) -> bool:
    (a, about_a), (b, about_b) = one, other
    same = about_a == about_b and a.keys() == b.keys()
    return same and all(a[k].equal(b[k]) for k in a)
