"""From what is seen of pictures to figures.

Distances have no unit of their own, so they are held against distances that mean something: a drift of 1 is
as far as one picture of the base is from another one; a near copy is nearer to a training picture than half
of what pictures of the subject that were never trained on are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import spread
from .figures import BY_KEY, Measured
from .known import Known
from .shots import KINDS, Kind, Shot
from .sight import Sight, feature_distance, pixel_distance

NEAR = 0.5
"""Of the usual distance of an unseen picture to the nearest training picture: below that it is a copy."""
FEWEST_TO_COMPARE = 3
"""Pictures from which the usual distance is taken."""

Distance = Callable[[Sight, Sight], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A picture that is near a training picture."""

    shot: int
    name: str
    """Of the training picture."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was measured of one candidate."""

    figures: Mapping[str, Measured]
    copies: Sequence[Copy] = ()


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The pictures of one kind of prompt."""

    rows: Sequence[int]
    shots: Sequence[Shot]
    base: Sight
    own: Sight


def measure(shots: Sequence[Shot], base: Sight, own: Sight, known: Known, *, fid: bool = False) -> Findings:
    """base, own: the pictures of `shots`, without the LoRA and with it."""
    parts: dict[Kind, _Part] = {}
    for kind in KINDS:
        rows = [i for i, shot in enumerate(shots) if shot.kind == kind]
        parts[kind] = _Part(
            rows=rows, shots=[shots[i] for i in rows], base=base.rows(rows), own=own.rows(rows)
        )
    values = _in_pixels(parts)
    if own.features is not None:
        values |= _by_judge(parts, known)
    copied, copies = _copied(parts["trigger"], known)
    found = {
        key: Measured(figure=BY_KEY[key], values=own_values)
        for key, own_values in (values | copied).items()
        if own_values
    }
    if own.features is not None:
        found |= spread.figures(parts["unrelated"].base, parts["unrelated"].own, fid=fid)
    return Findings(figures=found, copies=copies)


def _by_judge(parts: Mapping[Kind, _Part], known: Known) -> dict[str, list[float]]:
    trigger, of_class, unrelated = parts["trigger"], parts["class"], parts["unrelated"]
    found = {
        "diversity": _diversity(trigger, feature_distance),
        "class_diversity": _diversity(of_class, feature_distance),
        "drift": _drift(unrelated, feature_distance),
        "class_drift": _drift(of_class, feature_distance),
    }
    if known.references is not None:
        found["subject"] = _likeness(trigger.own, known.references)
        found["leak"] = _likeness(of_class.own, known.references)
    if known.texts is not None and trigger.own.features is not None:
        found["prompt"] = (trigger.own.features * known.texts[trigger.rows]).sum(1).tolist()
    return found


def _in_pixels(parts: Mapping[Kind, _Part]) -> dict[str, list[float]]:
    return {
        "pixel_diversity": _diversity(parts["class"], pixel_distance),
        "pixel_drift": _drift(parts["unrelated"], pixel_distance),
    }


def _copied(part: _Part, known: Known) -> tuple[dict[str, list[float]], list[Copy]]:
    """(1 for each near copy and 0 for others, what they are copies of by figures that are shown)"""
    found: dict[str, list[float]] = {}
    copies: dict[tuple[int, str], Copy] = {}
    distances = {"pixel_copies": pixel_distance}
    if part.own.features is not None:
        distances["copies"] = feature_distance
    for key, distance in distances.items():
        nearest = nearest_copies(part.own, known, distance)
        found[key] = [float(which is not None) for which in nearest]
        for row, which in zip(part.rows, nearest, strict=False):
            if which is not None and BY_KEY[key].shown:
                name = known.trained_names[which]
                copies[row, name] = Copy(shot=row, name=name)
    return found, list(copies.values())


def _likeness(pictures: Sight, references: Sight) -> list[float]:
    """Mean cosine of each picture to the references."""
    return (1 - feature_distance(pictures, references)).mean(1).tolist()


def _diversity(part: _Part, distance: Distance) -> list[float]:
    """Mean distance of each picture to the others of its prompt; nothing where no prompt has two."""
    far = distance(part.own, part.own)
    values = []
    for i, shot in enumerate(part.shots):
        others = [j for j, other in enumerate(part.shots) if other.prompt == shot.prompt and j != i]
        if others:
            values.append(far[i, others].mean().item())
    return values


def _drift(part: _Part, distance: Distance) -> list[float]:
    """How far each picture is from the base's of the same prompt and seed, in distances of different ones."""
    if len(part.base) < 2:
        return []
    scale = between(part.base, distance).mean().item()
    return (distance(part.base, part.own).diag() / scale).tolist() if scale > 0 else []


def between(pictures: Sight, distance: Distance) -> Tensor:
    """[N · (N - 1)]: distances of different pictures."""
    n = len(pictures)
    return distance(pictures, pictures)[~torch.eye(n, dtype=torch.bool)]


def usual_distance(known: Known, distance: Distance) -> float | None:
    """Median distance to the nearest training picture: of unseen pictures, or of training pictures among each
    other where there are too few of them. None when there are too few of both."""
    trained = known.trained
    assert trained is not None
    if known.unseen and known.references is not None and len(known.references) >= FEWEST_TO_COMPARE:
        return distance(known.references, trained).amin(1).median().item()
    if len(trained) < FEWEST_TO_COMPARE:
        return None
    apart = distance(trained, trained) + torch.eye(len(trained)) * 10
    return apart.amin(1).median().item()


def nearest_copies(pictures: Sight, known: Known, distance: Distance) -> list[int | None]:
    """Of which training picture each picture is a near copy; nothing when that cannot be told."""
    usual = usual_distance(known, distance) if known.trained is not None else None
    if usual is None or known.trained is None or not len(pictures):
        return []
    least, which = distance(pictures, known.trained).min(1)
    return [w if far < NEAR * usual else None for far, w in zip(least.tolist(), which.tolist(), strict=True)]
