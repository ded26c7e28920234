"""What a side hands back, and how far two sides are apart."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""(A, B) of a layer: ΔW = B·A."""


@dataclass(frozen=True, kw_only=True)
class Result:
    target: Tensor
    loss: Tensor
    """[B], before the mean."""
    weights: dict[str, Pair]
    gradients: dict[str, Pair]


@dataclass(frozen=True, kw_only=True)
class Distance:
    target: float
    loss: float
    gradient: float
    """The worst tensor's ‖ours - theirs‖ / ‖theirs‖."""
    cosine: float
    """The worst tensor's."""
    worst: str

    def __str__(self) -> str:
        return (
            f"target {self.target:.1e}, loss {self.loss:.1e}, gradient {self.gradient:.1e} ({self.worst}),"
            f" 1 - cosine {1 - self.cosine:.1e}"
        )


def distance(ours: Result, theirs: Result) -> Distance:
    assert ours.gradients.keys() == theirs.gradients.keys()
    gradient, cosine, worst = 0.0, 1.0, ""
    for name, pair in ours.gradients.items():
        for part, a, b in zip("AB", pair, theirs.gradients[name], strict=True):
            a, b = a.double().flatten(), b.double().flatten()
            if not a.any() and not b.any():  # the network does not use what this layer makes
                continue
            relative = ((a - b).norm() / b.norm()).item()
            cosine = min(cosine, (a @ b / (a.norm() * b.norm())).item())
            if relative > gradient:
                gradient, worst = relative, f"{name}.{part}"
    return Distance(
        target=((ours.target - theirs.target).abs().max() / theirs.target.abs().max()).item(),
        loss=((ours.loss - theirs.loss).abs() / theirs.loss).max().item(),
        gradient=gradient,
        cosine=cosine,
        worst=worst,
    )
