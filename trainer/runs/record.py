"""run.json: which run this is, and what it gave."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..files import read_json, sha256, write_json
from . import steps
from .checkpoints import LORA

_MOST_STEPS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run that reached its end was asked for and gave."""

    lora: str
    """File name in the folder of LoRAs, of embeddings, or in both."""
    source: str
    """The checkpoint's file that `lora` is a copy of."""
    sha256: str
    """Of the checkpoint's file, and of the LoRA."""
    steps: int
    """Reached; less than `asked` when the held-out loss ended the run."""
    asked: int
    keep_best: bool
    patience: int

    @classmethod
    def of(cls, config: TrainConfig, asked: int, *, reached: int, lora: Path, source: Path) -> Finished:
        wishes = config.validation
        return cls(
            lora=lora.name,
            source=source.name,
            sha256=sha256(source),
            steps=reached,
            asked=asked,
            keep_best=wishes.keep_best,
            patience=wishes.patience,
        )

    @classmethod
    def read(cls, value: Any) -> Finished | None:
        """None for anything but what `of` makes: a path that leads elsewhere, a number in place of a word."""
        types = {
            **dict.fromkeys(("lora", "source", "sha256"), str),
            **dict.fromkeys(("steps", "asked", "patience"), int),
            "keep_best": bool,
        }
        if not isinstance(value, dict) or {k: type(v) for k, v in value.items()} != types:
            return None
        plain = Path(value["lora"]).name == value["lora"] and value["lora"].endswith(LORA)
        counts = all(0 <= value[name] <= _MOST_STEPS for name in ("steps", "asked", "patience"))
        known = plain and counts and steps.step_of(value["source"], LORA) is not None
        return cls(**value) if known else None

    def answers(self, config: TrainConfig, asked: int) -> bool:
        """Whether a run with this config would end in the same result."""
        wishes = config.validation
        return (self.asked, self.keep_best, self.patience) == (asked, wishes.keep_best, wishes.patience)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of run.json."""

    key: str
    """`finding.run_key`."""
    dataset: str = ""
    """`Dataset.digest`."""
    finished: Finished | None = None

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """None when the file is missing or not whole, or says something that no run of ours says."""
        content = read_json(path)
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != names:
            return None
        finished = Finished.read(content["finished"])
        texts = isinstance(content["key"], str) and isinstance(content["dataset"], str)
        if not texts or (finished is None) != (content["finished"] is None):
            return None
        return cls(key=content["key"], dataset=content["dataset"], finished=finished)

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))
