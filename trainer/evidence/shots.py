"""What is drawn: the same prompts and seeds by every candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

Kind = Literal["trigger", "class", "unrelated"]
KINDS: Mapping[Kind, str] = {
    "trigger": "with the trigger",
    "class": "of the class, without the trigger",
    "unrelated": "unrelated",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    kind: Kind
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A LoRA at a strength. The base is strength 0."""

    label: str
    name: str = ""
    """Of the LoRA; empty for the base."""
    step: int | None = None
    strength: float = 0.0
    digest: str = ""
    """Of the LoRA's tensors."""

    @property
    def is_base(self) -> bool:
        return self.strength == 0


BASE = Candidate(label="without LoRA")


def shots(prompts: Mapping[Kind, Sequence[str]], seed: int, count: int) -> list[Shot]:
    """`count` pictures of each prompt, with seeds that count up from `seed`.

    Raises ConfigError without a prompt that has the trigger.
    """
    if not prompts.get("trigger"):
        raise ConfigError("prompts is empty; write at least one line with the word the LoRA was trained on")
    return [
        Shot(kind=kind, prompt=prompt, seed=(seed + i) % 2**64)
        for kind in KINDS
        for prompt in prompts.get(kind, ())
        for i in range(count)
    ]


def check_budget(shots: Sequence[Shot], candidates: Sequence[Candidate], most: int) -> None:
    """Raises ConfigError for more work than was meant."""
    asked = len({(shot.kind, shot.prompt) for shot in shots})
    total = len(shots) * len(candidates)
    if total > most:
        raise ConfigError(
            f"{asked} prompts × {len(shots) // asked} seeds × {len(candidates)} columns are {total} pictures"
            f" and max_pictures is {most}; write fewer prompts, choose fewer checkpoints, or raise it"
        )


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """`count` of the steps, evenly spaced, the last among them. 0: all."""
    if not count or count >= len(steps):
        return list(steps)
    return [steps[len(steps) * (i + 1) // count - 1] for i in range(count)]
