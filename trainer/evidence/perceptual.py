"""LPIPS (Zhang et al. 2018) by torchmetrics, where its network's weights are there already."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import spread
from .figures import BY_KEY, Measured
from .shots import Shot

NETWORK = "alex"
"""LPIPS' own default."""
SIDE = 256
"""Pixels that are compared, at most."""


def weights_file() -> Path | None:
    """Where torch keeps the weights of AlexNet; None without torchvision."""
    try:
        from torchvision.models import AlexNet_Weights
    except ImportError:
        return None
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.DEFAULT.url).name


def missing() -> str:
    """What is missing, in a sentence; empty where nothing is."""
    if not spread.available():
        return "LPIPS is left out: torchmetrics is missing; pip install -r requirements-evidence.txt"
    file = weights_file()
    if file is None:
        return "LPIPS is left out: torchvision is missing; pip install torchvision"
    if not file.is_file():
        return (
            f"LPIPS is left out: it needs the weights of AlexNet, and nothing is downloaded; put {file.name}"
            f" of torchvision into {file.parent}"
        )
    return ""


class Lpips:
    def __init__(self) -> None:
        """`missing` must be empty: then nothing is downloaded."""
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch and torchvision call their arguments
            metric: Any = LearnedPerceptualImagePatchSimilarity(net_type=NETWORK, normalize=True)
        self._net = metric.net.eval()

    @torch.inference_mode()
    def diversity(
        self, shots: Sequence[Shot], pictures: Sequence[Callable[[], Image.Image]]
    ) -> dict[str, Measured]:
        """Mean distance of each picture of the class to the others of its prompt; nothing where no prompt has
        two."""
        by_prompt: dict[str, list[int]] = {}
        for i, shot in enumerate(shots):
            if shot.kind == "class":
                by_prompt.setdefault(shot.prompt, []).append(i)
        values: list[float] = []
        for rows in by_prompt.values():
            if len(rows) > 1:
                some = torch.stack([_prepared(pictures[i]()) for i in rows])
                far = torch.zeros(len(rows), len(rows))
                for i in range(len(rows) - 1):
                    rest = some[i + 1 :]
                    far[i, i + 1 :] = self._net(some[i].expand_as(rest), rest, normalize=True).flatten()
                values += ((far + far.T).sum(1) / (len(rows) - 1)).tolist()
        key = "lpips_diversity"
        return {key: Measured(figure=BY_KEY[key], values=values)} if values else {}


def _prepared(picture: Image.Image) -> torch.Tensor:
    """[3, H, W] in 0..1"""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    return torch.from_numpy(np.array(small, dtype=np.float32) / 255).movedim(-1, 0)
