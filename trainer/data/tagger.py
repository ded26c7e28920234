"""Tags by a WD tagger: `model.onnx` beside `selected_tags.csv`, run by onnxruntime."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DatasetError, ModelError
from .captioners import CaptionRequest
from .metadata import read_text

MODEL, TAGS = "model.onnx", "selected_tags.csv"
MAX_TAGS_BYTES = 20_000_000
GENERAL, CHARACTER = "0", "4"
"""Categories of the table; the rest (ratings, artists) is left out."""

_EYE = r"[^a-z0-9]*[a-z0-9]?[^a-z0-9]*"
_FACE = re.compile(f"{_EYE}_{_EYE}", re.IGNORECASE)

PIP = "python -m pip install onnxruntime"


@dataclass(frozen=True)
class Tag:
    name: str
    category: str


class TagCaptioner:
    """The engine's `Captioner`: characters first, then what is seen, the surest first."""

    def __init__(
        self, folder: Path, request: CaptionRequest, *, on_gpu: bool, check: Callable[[], None]
    ) -> None:
        """check: called for each batch; what it raises ends the captioning. Raises ModelError."""
        try:
            import onnxruntime
        except ImportError as error:
            raise ModelError(
                f"model folder {folder.name}: is a tagger and needs the package onnxruntime; install it"
                f" with: {PIP}"
            ) from error
        self._tags = read_tags(folder / TAGS)
        have = onnxruntime.get_available_providers()
        wanted = ["CUDAExecutionProvider"] if on_gpu else []
        providers = [p for p in [*wanted, "CPUExecutionProvider"] if p in have]
        try:
            self._session: Any = onnxruntime.InferenceSession(str(folder / MODEL), providers=providers)
        except Exception as error:  # onnxruntime's own errors have no common base
            said = " ".join(str(error).split())
            raise ModelError(
                f"model folder {folder.name}: {MODEL} cannot be read ({said[:300]}); download it again"
            ) from error
        (entry,), (out, *_) = self._session.get_inputs(), self._session.get_outputs()
        self._input = entry.name
        count, *sides = entry.shape
        if len(entry.shape) != 4 or sides[0] != sides[1] or sides[2] != 3 or out.shape[-1] != len(self._tags):
            raise ModelError(
                f"model folder {folder.name}: takes {entry.shape} and gives {out.shape}, and {TAGS} has"
                f" {len(self._tags)} rows; a WD tagger takes [batch, side, side, 3] and gives a score for"
                " each row"
            )
        self._side = int(sides[0])
        self._check, self._request = check, request
        self._fixed = count if isinstance(count, int) else 0
        self.batch = self._fixed or request.batch

    def caption(self, pictures: Sequence[Image.Image], seed: int) -> list[str]:
        self._check()
        pixels = np.stack([prepared(picture, self._side) for picture in pictures])
        if (lacking := self._fixed - len(pictures)) > 0:
            pixels = np.concatenate([pixels, np.zeros_like(pixels[:1]).repeat(lacking, 0)])
        scores = np.asarray(self._session.run(None, {self._input: pixels})[0])[: len(pictures)]
        return [self._caption(row) for row in scores]

    def close(self) -> None:
        """Let go of the model's memory."""
        self._session = None

    def _caption(self, scores: np.ndarray) -> str:
        limits = {CHARACTER: self._request.character_threshold, GENERAL: self._request.threshold}
        found = [
            (list(limits).index(tag.category), -float(score), tag.name)
            for tag, score in zip(self._tags, scores, strict=True)
            if tag.category in limits and score >= limits[tag.category]
        ]
        return ", ".join(name for *_, name in sorted(found))


def prepared(picture: Image.Image, side: int) -> np.ndarray:
    """[side, side, 3], float32, 0 to 255, blue first: the picture on a white square."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    scaled = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(scaled, dtype=np.float32)[:, :, ::-1])


def read_tags(path: Path) -> list[Tag]:
    """The rows of selected_tags.csv, with spaces for underscores, but in faces such as ^_^.

    Raises ModelError.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, MAX_TAGS_BYTES), newline="")))
        return [Tag(_words(row["name"]), row["category"].strip()) for row in rows]
    except (DatasetError, csv.Error, KeyError, AttributeError) as error:
        raise ModelError(
            f"{path.name}: is not a tagger's table with the columns name and category ({error}); download"
            " it again"
        ) from error


def _words(name: str) -> str:
    return name if _FACE.fullmatch(name) else name.replace("_", " ")
