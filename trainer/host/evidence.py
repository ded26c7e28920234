"""Evaluate LoRA's work on the models that ComfyUI has loaded: draw, look, measure, write.

Pictures are drawn first and judged afterwards, so that a judge is never beside the model in memory. What is
drawn is on disk at once: an evaluation that was interrupted goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import comfy.model_management as mm
import torch
from PIL import Image
from torch import Tensor

from ... import __version__
from ..config import AS_LOADED, TrainConfig
from ..data.records import Dataset
from ..errors import ConfigError
from ..events import Event, Notice
from ..evidence import spread
from ..evidence.choice import Bounds, choose
from ..evidence.figures import BY_KEY, Measured
from ..evidence.kept import KeptPictures
from ..evidence.known import gather, trained_picture
from ..evidence.measure import Findings, measure
from ..evidence.questions import Answerer, Asked
from ..evidence.report import Report
from ..evidence.shots import BASE, Candidate, Shot, check_budget
from ..evidence.sight import Judge, Sight, look
from ..pictures.drawing import to_pil
from . import paths
from .as_trained import as_trained, choices_of
from .digest import digest
from .held_out import HeldOut
from .identity import clip_fingerprint, model_fingerprint, vae_fingerprint
from .judges import FolderClassifier
from .lora import apply_lora
from .more_figures import more_figures
from .progress import check_interrupt
from .references import UNCHOSEN, Choices
from .sample import SampleSettings, encode_prompt, sample_image
from .ways import check_draws_alone

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE


@dataclass(frozen=True, kw_only=True)
class NamedLora:
    name: str
    digest: str
    load: Callable[[], Mapping[str, Tensor]]
    step: int | None = None


class Progress(Protocol):
    """`NodeProgress` has what is needed."""

    def update(self, done: int, total: int, preview: Image.Image | None = None) -> None: ...
    def text(self, text: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the LoRAs."""

    shots: Sequence[Shot]
    negative: str
    sampling: SampleSettings
    loras: Sequence[NamedLora]
    strengths: Sequence[float]
    dataset: Dataset | None = None
    """What was trained on."""
    trained: TrainConfig = TrainConfig()
    """How, as far as it is known: how many pictures were held out, and how they were encoded."""
    start_vision: ClipVisionModel | None = field(default=None, repr=False)
    """What a network was told of start pictures by."""
    references: Sequence[Image.Image] = ()
    """Of the subject, not trained on; without them the dataset's held-out pictures."""
    bounds: Bounds = Bounds()
    most: int = 500
    """Pictures."""
    fid: bool = False
    all_figures: bool = False
    trigger: str = ""
    asked: Asked = ()
    """Questions; empty: of the prompts' parts."""

    def candidates(self) -> dict[Candidate, NamedLora | None]:
        """The base first. Raises ConfigError without a LoRA or a strength."""
        strengths = [s for s in self.strengths if s != 0]
        if not self.loras:
            raise ConfigError("there is no LoRA to evaluate; connect lora, choose a run, or name lora_files")
        if not strengths:
            raise ConfigError("strengths has only 0, the untouched model; add another one, like 1")
        found: dict[Candidate, NamedLora | None] = {BASE: None}
        for lora in self.loras:
            for strength in strengths:
                at = "" if strengths == [1.0] else f" × {strength:g}"
                name = lora.name if lora.step is None else f"step {lora.step}"
                candidate = Candidate(
                    label=name + at, name=lora.name, step=lora.step, strength=strength, digest=lora.digest
                )
                found[candidate] = lora
        return found


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    report: Report
    best: NamedLora
    best_strength: float
    picture: Callable[[int, int], Image.Image]
    """(column, shot)"""
    trained: Callable[[str], Image.Image | None]
    """Name of a training picture → the picture, or None where it cannot be read."""


def evaluate(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    judge: Judge | None,
    question: Question,
    progress: Progress,
    *,
    answerer: Answerer | None = None,
    classifier: FolderClassifier | None = None,
) -> Evaluated:
    """Models come back untouched. ComfyUI's interrupt is raised as it is; what was drawn stays on disk."""
    candidates = question.candidates()
    check_budget(question.shots, list(candidates), question.most)
    dataset, choices, told = _as_trained(model, clip, vae, question)
    decisive, notes = _decisive(model, clip, vae, question)
    notes += told
    kept = KeptPictures(paths.evidence_directory() / "pictures", decisive)
    for candidate, lora in candidates.items():
        _draw(model, clip, vae, candidate, lora, question, kept, list(candidates), progress)
    mm.soft_empty_cache()
    held_out = None
    if dataset is not None and any(r.role == "validation" for r in dataset.records):
        held_out = HeldOut(model, clip, vae, dataset, question.trained, choices)
    losses = _losses(held_out, candidates, progress)
    size = question.sampling.width, question.sampling.height
    known, more = gather(
        judge, question.shots, dataset, question.references, size, question.trigger, check_interrupt
    )
    notes += more

    def opened(candidate: Candidate) -> list[Callable[[], Image.Image]]:
        return [partial(kept.open, candidate, shot) for shot in question.shots]

    def seen(candidate: Candidate) -> Sight:
        told = _told(progress, f"looking at {candidate.label}")
        return look(judge, opened(candidate), f"the pictures of {candidate.label}", told)

    base = seen(BASE)
    measured: dict[Candidate, Findings] = {}
    for candidate in candidates:
        own = base if candidate.is_base else seen(candidate)
        measured[candidate] = measure(question.shots, base, own, known, fid=question.fid)
    others, more = more_figures(
        question.shots,
        {candidate: opened(candidate) for candidate in candidates},
        asked=question.asked,
        trigger=question.trigger,
        answerer=answerer,
        classifier=classifier,
        all_figures=question.all_figures,
        told=lambda what: _told(progress, what),
    )
    notes += more
    columns = [
        (candidate, replace(found, figures={**found.figures, **others[candidate], **losses[candidate]}))
        for candidate, found in measured.items()
    ]
    notes += _not_asked(question.shots, judge is not None)
    if judge is not None and not spread.available():
        notes.append(spread.MISSING)
    if question.fid:
        notes += _on_fid(question.shots, classifier is not None)
    choice = choose([(candidate, found.figures) for candidate, found in columns], question.bounds)
    report = Report(
        shots=question.shots,
        columns=columns,
        choice=choice,
        bounds=question.bounds,
        judge=f"{judge.name} {judge.digest}" if judge is not None else "",
        settings={
            **_settings(question, dataset, decisive, judge),
            "answers": _named(answerer),
            "questions": [" | ".join(filter(None, line)) for line in question.asked],
            "classifier": _named(classifier),
        },
        notes=notes,
        all_figures=question.all_figures,
        unseen=known.unseen if known.references is not None else None,
    )
    best = columns[choice.column if choice.column is not None else -1][0]
    lora = candidates[best]
    assert lora is not None
    return Evaluated(
        report=report,
        best=lora,
        best_strength=best.strength,
        picture=lambda column, shot: kept.open(columns[column][0], question.shots[shot]),
        trained=partial(trained_picture, dataset),
    )


def _decisive(
    model: ModelPatcher, clip: CLIP, vae: VAE, question: Question
) -> tuple[dict[str, Any], list[str]]:
    """All that decides the pictures besides LoRA, prompt and seed; and what the user should know of it."""
    found = [model_fingerprint(model), clip_fingerprint(clip), vae_fingerprint(vae)]
    options = {k: v for k, v in model.model_options.items() if k != "transformer_options"}
    found.append(digest(options))
    unknown = [what for _, more in found for what in more]
    decisive = {
        "models": [own for own, _ in found],
        "negative": question.negative,
        "sampling": asdict(question.sampling),
        "comfyui": paths.comfyui_version(),
        "torch": torch.__version__,
    }
    if not unknown:
        return decisive, []
    decisive["once"] = torch.seed()
    return decisive, [
        f"pictures are drawn anew each time: it is not known what {', '.join(unknown[:3])} does"
    ]


def _as_trained(
    model: ModelPatcher, clip: CLIP, vae: VAE, question: Question
) -> tuple[Dataset | None, Choices, list[str]]:
    """(the dataset as the model was trained on it, how pictures are shown to it, what to know of that)"""
    if question.dataset is None:
        return None, UNCHOSEN, []
    told: list[str] = []

    def emit(event: Event) -> None:
        if isinstance(event, Notice):
            told.append(event.message)

    node, held_out = question.trained.data.edit_node, question.trained.validation.held_out
    choices = choices_of(model, node, question.start_vision, emit, "start_clip_vision")
    dataset = as_trained(question.dataset, model, clip, vae, choices, held_out, emit)
    if held_out and (precision := question.trained.memory.base_precision) != AS_LOADED:
        # A merged LoRA would be quantised with its weight, which the training never does.
        told.append(f"the held-out loss is on the weights as loaded; the training held them in {precision}")
    return dataset, choices, told


def _settings(
    question: Question, dataset: Dataset | None, decisive: Mapping[str, Any], judge: Judge | None
) -> dict[str, Any]:
    return {
        **decisive,
        "in_graph_lora": __version__,
        "created": datetime.now().isoformat(timespec="seconds"),
        "strengths": list(question.strengths),
        "loras": [{"name": lora.name, "step": lora.step, "sha256": lora.digest} for lora in question.loras],
        "judge": _named(judge),
        "dataset": dataset.digest if dataset is not None else None,
        "references": [sha256(picture.tobytes()).hexdigest() for picture in question.references],
        "seeds": sorted({shot.seed for shot in question.shots}),
    }


def _named(model: Judge | Answerer | FolderClassifier | None) -> dict[str, str] | None:
    return {"name": model.name, "digest": model.digest} if model is not None else None


def _draw(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    candidate: Candidate,
    lora: NamedLora | None,
    question: Question,
    kept: KeptPictures,
    all_candidates: Sequence[Candidate],
    progress: Progress,
) -> None:
    missing = [shot for shot in question.shots if not kept.has(candidate, shot)]
    missing = list({(shot.prompt, shot.seed): shot for shot in missing}.values())
    if not missing:
        return
    check_draws_alone(model)
    if lora is not None:
        model, patched = apply_lora(model, clip, lora.load(), candidate.strength, candidate.strength)
        clip = patched or clip
    negative = encode_prompt(clip, question.negative)
    prompts = {prompt: encode_prompt(clip, prompt) for prompt in dict.fromkeys(s.prompt for s in missing)}
    total = len(question.shots) * len(all_candidates)
    done = len(question.shots) * (all_candidates.index(candidate) + 1) - len(missing)
    for i, shot in enumerate(missing):
        check_interrupt()
        progress.text(f"{candidate.label}: picture {done + i + 1} of {total}")
        image = sample_image(model, vae, prompts[shot.prompt], negative, shot.seed, question.sampling)
        picture = to_pil(image)
        kept.keep(candidate, shot, picture)
        progress.update(done + i + 1, total, preview=picture)


def _told(progress: Progress, what: str) -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        check_interrupt()
        progress.text(f"{what} {done + 1}/{total}")

    return told


def _not_asked(shots: Sequence[Shot], judged: bool) -> list[str]:
    """What is not measured for want of pictures."""
    count = Counter(shot.kind for shot in shots)
    notes = []
    if not count["class"]:
        notes.append("leak is not measured: write class_prompts, the class without the trigger")
    elif max(Counter(shot.prompt for shot in shots if shot.kind == "class").values()) < 2:
        notes.append("diversity is not measured: it needs two pictures of a prompt; raise images_per_prompt")
    n = count["unrelated"]
    if not n:
        notes.append("drift is not measured: write unrelated_prompts")
    elif n < 2:
        notes.append("drift is not measured: it needs two unrelated pictures or more")
    if judged and spread.available() and 0 < n < spread.FEWEST:
        notes.append(
            f"KID is left out: it needs {spread.FEWEST} unrelated pictures or more, and there are {n}"
        )
    return notes


def _on_fid(shots: Sequence[Shot], classified: bool) -> list[str]:
    n = sum(shot.kind == "unrelated" for shot in shots)
    notes = [f"FID{spread.few(n) or ' is over the unrelated prompts'}"]
    if not classified:
        notes.append(
            "IS is not measured: it needs a classifier; name a folder of a transformers image classifier in"
            " classifier_folder"
        )
    return notes


def _losses(
    held_out: HeldOut | None, candidates: Mapping[Candidate, NamedLora | None], progress: Progress
) -> dict[Candidate, dict[str, Measured]]:
    """The held-out loss of each candidate; nothing without held-out pictures."""
    if held_out is None:
        return {candidate: {} for candidate in candidates}
    found = {}
    for candidate, lora in candidates.items():
        _told(progress, f"held-out loss of {candidate.label}, picture")(0, len(held_out))
        levels = held_out.levels(lora.load if lora is not None else None, candidate.strength)
        loss = Measured(figure=BY_KEY["loss"], values=levels.mean(1).tolist(), levels=levels.mean(0).tolist())
        found[candidate] = {"loss": loss}
    return found
