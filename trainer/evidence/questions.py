"""Is what the prompt asks for in the picture? Asked of a model that looks and answers yes or no.

Each part of a prompt is a question of its own, as in TIFA (Hu et al. 2023), put in the words of VQAScore (Lin
et al. 2024). An answer that is neither yes nor no is no yes, and is counted apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from ..errors import ConfigError
from .figures import BY_KEY, Measured
from .shots import Shot

SHORT = " Answer with yes or no."
ON_REQUEST = (
    "the answers to the questions are in report.json; all_figures shows their figures, which ranked drawn"
    " pictures in our trial, and LoRAs not surely"
)
LENGTH = 24
"""Tokens of an answer, at most."""
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


class Answerer(Protocol):
    name: str
    digest: str
    """Of its weights; empty where that cannot be told."""

    def answer(self, picture: Image.Image, question: str) -> str: ...


Asked = Sequence[tuple[str, str]]
"""(words that a prompt must have, "" for each prompt; question)"""


def parse(written: Sequence[str]) -> Asked:
    """Lines like `is there a hat?`, or `hat | is there a hat?` for prompts with that word only.

    Raises ConfigError for a line without a question.
    """
    asked = []
    for line in written:
        words, bar, question = (part.strip() for part in line.rpartition("|"))
        if not question or (bar and not words):
            raise ConfigError(
                f"questions: {line.strip()!r} has no question; write like 'is there a hat?', or 'hat | is"
                " there a hat?' for prompts with that word"
            )
        asked.append((words, question))
    return asked


def questions(prompt: str, asked: Asked, trigger: str = "") -> list[str]:
    """What is asked of a picture of this prompt. Without questions of the user: of each part between commas,
    without the trigger."""
    if asked:
        return [q for words, q in asked if re.search(rf"\b{re.escape(words)}\b", prompt, re.IGNORECASE)]
    known = " ".join(word for word in prompt.split() if not trigger or word.strip(",.") != trigger)
    parts = [part.strip(" .") for part in known.split(",")]
    return [f'Does this picture show "{part}"?' for part in dict.fromkeys(parts) if part]


def is_yes(answer: str) -> bool | None:
    """None for an answer that is neither, or both."""
    said = {word.lower() for word in _WORD.findall(answer)}
    first = _WORD.match(answer.strip(" *\"'`\n"))
    if first is not None:
        return first.group().lower() == "yes"
    return said == {"yes"} if len(said) == 1 else None


def figures(answers: Sequence[Sequence[str]]) -> dict[str, Measured]:
    """answers: of each picture that was asked about."""
    judged = [[is_yes(answer) for answer in own] for own in answers if own]
    if not judged:
        return {}
    yes = [sum(one is True for one in own) / len(own) for own in judged]
    unclear = [sum(one is None for one in own) / len(own) for own in judged]
    return {
        "answers": Measured(figure=BY_KEY["answers"], values=yes),
        "unclear": Measured(figure=BY_KEY["unclear"], values=unclear),
    }


def not_asked(shots: Sequence[Shot], asked: Asked, trigger: str) -> list[str]:
    """In words, what of the prompts no question is about."""
    silent = {s.prompt for s in shots if s.kind == "trigger" and not questions(s.prompt, asked, trigger)}
    return [f"no question is about: {', '.join(sorted(silent))}"] if silent else []
