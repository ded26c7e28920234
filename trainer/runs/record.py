"""run.json: which run this is, and what it gave."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..config import BY_JUDGE, TrainConfig
from ..files import read_json, sha256, write_json
from . import steps
from .checkpoints import LORA

_MOST_STEPS = 10_000_000


def decided_by(config: TrainConfig) -> str:
    """What decides which step is best, but for when it is asked; empty for the held-out loss."""
    own = config.validation
    if own.decides != BY_JUDGE:
        return ""
    return f"{seen_by(config)}; drift {own.max_drift:g}, copies {own.max_copies:g}"


def seen_by(config: TrainConfig) -> str:
    """A digest of the judge and of all that decides the sample pictures besides the LoRA."""
    pictures = asdict(replace(config.preview, every=1))
    return hashlib.sha256(f"{config.validation.judge} {pictures}".encode()).hexdigest()[:16]


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
    """Reached; less than `asked` when `patience` ended the run."""
    asked: int
    keep_best: bool
    patience: int
    decided_by: str = ""
    """`decided_by` of its config."""

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
            decided_by=decided_by(config),
        )

    @classmethod
    def read(cls, value: Any) -> Finished | None:
        """None for anything but what `of` makes: a path that leads elsewhere, a number in place of a word."""
        types = {
            **dict.fromkeys(("lora", "source", "sha256", "decided_by"), str),
            **dict.fromkeys(("steps", "asked", "patience"), int),
            "keep_best": bool,
        }
        if isinstance(value, dict):
            value = {"decided_by": "", **value}  # earlier versions have none
        if not isinstance(value, dict) or {k: type(v) for k, v in value.items()} != types:
            return None
        plain = Path(value["lora"]).name == value["lora"] and value["lora"].endswith(LORA)
        counts = all(0 <= value[name] <= _MOST_STEPS for name in ("steps", "asked", "patience"))
        known = plain and counts and steps.step_of(value["source"], LORA) is not None
        return cls(**value) if known else None

    def answers(self, config: TrainConfig, asked: int) -> bool:
        """Whether a run with this config would end in the same result."""
        wishes = config.validation
        same = (self.asked, self.keep_best, self.patience) == (asked, wishes.keep_best, wishes.patience)
        chosen = self.keep_best or self.patience
        return same and (not chosen or self.decided_by == decided_by(config))


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
