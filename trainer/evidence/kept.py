"""Pictures on disk, each under the hash of all that decides it: what is there is not drawn again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..files import write_image
from .shots import Candidate, Shot

DRAWN = 1
"""Counts up when the same settings would give another picture."""


class KeptPictures:
    def __init__(self, folder: Path, decisive: Mapping[str, Any]) -> None:
        """decisive: models, sampler settings and versions."""
        self.folder = folder
        self._decisive = json.dumps([DRAWN, decisive], sort_keys=True)

    def path(self, candidate: Candidate, shot: Shot) -> Path:
        """The kind of prompt decides nothing, nor does the LoRA's name."""
        own = [candidate.digest, candidate.strength] if not candidate.is_base else []
        key = json.dumps([self._decisive, own, shot.prompt, shot.seed])
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name}.png"

    def has(self, candidate: Candidate, shot: Shot) -> bool:
        return self.path(candidate, shot).is_file()

    def open(self, candidate: Candidate, shot: Shot) -> Image.Image:
        with Image.open(self.path(candidate, shot)) as image:
            return image.convert("RGB")

    def keep(self, candidate: Candidate, shot: Shot, image: Image.Image) -> None:
        write_image(self.path(candidate, shot), image)


def tensors_digest(lora: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of a LoRA."""
    import torch

    h = hashlib.sha256()
    for name in sorted(lora):
        tensor = lora[name].detach().cpu().contiguous()
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()
