"""What is measured only when it is asked for: answers to questions, inception score, LPIPS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image

from ..errors import ModelError
from ..evidence import perceptual, questions, spread
from ..evidence.figures import Measured
from ..evidence.questions import Answerer, Asked
from ..evidence.shots import Candidate, Shot
from ..evidence.sight import AT_ONCE
from .judges import FolderClassifier

Pictures = Sequence[Callable[[], Image.Image]]
"""Of each shot, opened when it is looked at."""
Told = Callable[[str], Callable[[int, int], None]]
"""what → (done, of how many), which raises ComfyUI's interrupt."""


def more_figures(
    shots: Sequence[Shot],
    pictures: Mapping[Candidate, Pictures],
    *,
    asked: Asked,
    trigger: str,
    answerer: Answerer | None,
    classifier: FolderClassifier | None,
    all_figures: bool,
    told: Told,
) -> tuple[dict[Candidate, dict[str, Measured]], list[str]]:
    """(figures of each candidate, what could not be measured and why). One network after the other.

    all_figures: LPIPS too.
    """
    found: dict[Candidate, dict[str, Measured]] = {candidate: {} for candidate in pictures}
    notes = []
    if answerer is not None:
        for candidate, own in pictures.items():
            step = told(f"asking about {candidate.label}, picture")
            found[candidate] |= _answers(answerer, shots, own, asked, trigger, step)
        notes += questions.not_asked(shots, asked, trigger)
        if not all_figures:
            notes.append(questions.ON_REQUEST)
    elif asked:
        notes.append("questions are not asked: connect a text encoder that sees to question_clip")
    if classifier is not None:
        for candidate, own in pictures.items():
            unrelated = [p for p, shot in zip(own, shots, strict=True) if shot.kind == "unrelated"]
            step = told(f"classifying {candidate.label}, picture")
            found[candidate] |= _inception(classifier, unrelated, step)
        notes += _on_inception(sum(shot.kind == "unrelated" for shot in shots))
    if all_figures:
        if why := perceptual.missing():
            notes.append(why)
        else:
            network = perceptual.Lpips()
            for candidate, own in pictures.items():
                told(f"LPIPS of {candidate.label}, picture")(0, len(shots))
                found[candidate] |= network.diversity(shots, own)
    return found, notes


def _answers(
    answerer: Answerer,
    shots: Sequence[Shot],
    pictures: Pictures,
    asked: Asked,
    trigger: str,
    step: Callable[[int, int], None],
) -> dict[str, Measured]:
    rows = [i for i, shot in enumerate(shots) if shot.kind == "trigger"]
    answers = []
    for done, i in enumerate(rows):
        step(done, len(rows))
        picture = pictures[i]()
        own = questions.questions(shots[i].prompt, asked, trigger)
        answers.append([answerer.answer(picture, question) for question in own])
    return questions.figures(answers)


def _inception(
    classifier: FolderClassifier, pictures: Pictures, step: Callable[[int, int], None]
) -> dict[str, Measured]:
    logits = []
    for start in range(0, len(pictures), AT_ONCE):
        step(start, len(pictures))
        logits.append(classifier.logits([picture() for picture in pictures[start : start + AT_ONCE]]))
    if not logits:
        return {}
    found = torch.cat(logits)
    if not found.isfinite().all():
        raise ModelError(
            f"the classifier {classifier.name} gives NaN or infinite numbers; choose another one"
        )
    return spread.inception_score(found)


def _on_inception(count: int) -> list[str]:
    if not spread.available():
        return ["IS is left out: torchmetrics is missing; pip install -r requirements-evidence.txt"]
    if count < 2 * spread.SPLITS:
        return [
            f"IS is left out: there are {count} pictures of unrelated prompts, and it is a mean over"
            f" {spread.SPLITS} parts of two or more; it says something from {spread.ENOUGH_FOR_FID} on"
        ]
    return [f"IS{spread.few(count) or ' is over the unrelated prompts'}"]
