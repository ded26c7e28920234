"""Captions by a model that looks at the pictures, whatever model it is; what was written is kept on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..errors import ConfigError, DatasetError, shortened
from ..files import read_json, sha256, write_json
from ..text import readable
from .captions import closed
from .images import WHITE, on_colour
from .pixels import opened
from .records import ImageRecord

MAX_SIDE = 1024
"""Pixels that a captioner gets at most of a side: more makes it slow and the caption no better."""

RANGES = {
    "max_length": (1, 4096),
    "temperature": (0, 2),
    "batch": (1, 64),
    "threshold": (0, 1),
    "character_threshold": (0, 1),
}

PROMPTS = {
    "subject": "Describe this picture in one or two plain sentences: what the subject does, its pose and"
    " clothing, the surroundings, the light and the framing. Do not describe what always belongs to the"
    " subject itself, such as its face. Answer with the description only.",
    "style": "Describe what is shown in this picture in one or two plain sentences: subjects, their actions"
    " and the surroundings. Do not mention the style, the technique, the medium or the artist. Answer with"
    " the description only.",
    "tags": "Write 10 to 30 short tags for what is shown in this picture, in lower case, separated by"
    " commas, the most important first. Answer with the tags only.",
}

_THINKING = re.compile(r".*</think>|<think>.*", re.DOTALL)
_FENCES = ("**", "*", "`", '"', "'")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRequest:
    """What a captioner is asked for."""

    about: str = "subject"
    """One of PROMPTS."""
    prompt: str = ""
    """In the words of the user, instead."""
    max_length: int = 256
    """Tokens of a caption, at most."""
    temperature: float = 0.0
    """0: always the likeliest word; above, words are drawn, the more freely the higher it is."""
    seed: int = 0
    batch: int = 1
    """Pictures at a time, where the captioner can."""
    threshold: float = 0.35
    """Of taggers: tags that are less likely are left out."""
    character_threshold: float = 0.85
    """The same for names of characters."""

    def __post_init__(self) -> None:
        if self.about not in PROMPTS:
            raise ConfigError(f"about is {self.about!r}; choose one of {', '.join(PROMPTS)}")
        for name, (low, high) in RANGES.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"{name} is {value}; choose {low} to {high}")

    @property
    def question(self) -> str:
        return self.prompt.strip() or PROMPTS[self.about]

    @property
    def draws(self) -> bool:
        return self.temperature > 0


class Captioner(Protocol):
    batch: int
    """Pictures that it takes at a time."""

    def caption(self, pictures: Sequence[Image.Image], seed: int) -> list[str]:
        """One text for each of up to `batch` pictures in mode RGB; the seed decides what is drawn."""
        ...


class CaptionCache:
    """Captions of one captioner and request: a small file each, safe for two processes."""

    def __init__(self, folder: Path, identity: str, request: CaptionRequest) -> None:
        """identity: of the model; "" when it cannot be told from another, and nothing is kept."""
        # How many go at a time changes no caption, but for the last digits of a score.
        settings = {k: v for k, v in asdict(request).items() if k != "batch"} | {"prompt": request.question}
        self._folder = folder if identity else None
        self._key = json.dumps([identity, settings, MAX_SIDE], sort_keys=True)

    def get(self, picture: str) -> str | None:
        """None for a caption that is not there or not whole.

        picture: sha256 of its file, "" for one that cannot be read.
        """
        path = self._path(picture)
        entry = read_json(path) if path is not None else None
        caption = entry.get("caption") if isinstance(entry, dict) and entry.get("key") == self._key else None
        return readable(caption) if isinstance(caption, str) else None

    def put(self, picture: str, caption: str) -> None:
        if (path := self._path(picture)) is not None:
            write_json(path, {"caption": caption, "key": self._key})

    def _path(self, picture: str) -> Path | None:
        if self._folder is None or not picture:
            return None
        name = hashlib.sha256(f"{picture}\0{self._key}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name[2:34]}.json"


Told = Callable[[int, int, str, str, "Image.Image | None"], None]
"""(done, of how many, name, caption, picture): after each one; without the picture when it was kept."""


def caption_pictures(
    records: Iterable[ImageRecord],
    start: Callable[[], AbstractContextManager[Captioner]],
    cache: CaptionCache,
    request: CaptionRequest,
    told: Told,
) -> Mapping[Path, str]:
    """{picture: caption}. The model is started only when there is a picture whose caption is not kept.

    Each caption is kept as soon as it is written, so that what stops this (an interrupt raised by `told` or
    by the captioner, a full disk) loses none. Pictures that cannot be read are left to the end and then raise
    one DatasetError; the next call goes on with them.
    """
    pictures = {r.path: r for r in records}
    found = {path: kept for path in pictures if (kept := cache.get(sha256(path))) is not None}
    for done, (path, caption) in enumerate(found.items(), 1):
        told(done, len(pictures), pictures[path].name, caption, None)
    missing = [path for path in pictures if path not in found]
    bad: list[str] = []
    if missing:
        with start() as captioner:
            size = 1 if request.draws else captioner.batch
            for first in range(0, len(missing), size):
                looks = _looks([pictures[path] for path in missing[first : first + size]], bad)
                # Now and not before: the model may have been at work for hours, and files are edited.
                digests = [sha256(path) for path in looks]
                texts = captioner.caption(list(looks.values()), _seed(request, digests)) if looks else []
                for (path, picture), digest, text in zip(looks.items(), digests, texts, strict=True):
                    found[path] = cleaned(text)
                    cache.put(digest, found[path])
                    told(len(found), len(pictures), pictures[path].name, found[path], picture)
    if bad:
        raise DatasetError(
            f"{shortened(bad)}; all other captions are kept, so mend the file or take it out and run again"
        )
    return found


def cleaned(text: str) -> str:
    """What a model wrote as one line, without what it thought before, and without marks around the whole."""
    text = closed(readable(_THINKING.sub("", text)))
    for mark in _FENCES:
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    return text


def _looks(records: Sequence[ImageRecord], bad: list[str]) -> dict[Path, Image.Image]:
    """What the captioner sees of each; of a clip the first frame."""
    looks: dict[Path, Image.Image] = {}
    for record in records:
        try:
            picture = on_colour(opened(record)[0], WHITE)
        except DatasetError as error:
            bad.append(str(error))
            continue
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        looks[record.path] = picture
    return looks


def _seed(request: CaptionRequest, digests: Sequence[str]) -> int:
    """The same for the same picture, wherever in the dataset it stands."""
    text = "\0".join([str(request.seed), *digests])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
