"""The CLIP on the canvas that sees and writes, as one who answers questions about pictures."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from PIL import Image

from ..data.captioners import CaptionCache, CaptionRequest, cleaned
from ..evidence.questions import LENGTH, SHORT
from .captioning import ClipCaptioner
from .identity import clip_fingerprint
from .paths import captions_directory

if TYPE_CHECKING:
    from comfy.sd import CLIP


class ClipAnswerer:
    """The engine's `Answerer`. What was answered is kept on disk, with the captions."""

    def __init__(self, clip: CLIP) -> None:
        """Raises ModelError for a text encoder that cannot see or cannot write."""
        self.name = type(clip.cond_stage_model).__name__.strip("_")
        digest, unknown = clip_fingerprint(clip)
        self.digest = "" if unknown else digest
        self._captioner = ClipCaptioner(clip, CaptionRequest(max_length=LENGTH))

    def answer(self, picture: Image.Image, question: str) -> str:
        text = question + SHORT
        cache = CaptionCache(
            captions_directory(), self.digest, CaptionRequest(prompt=text, max_length=LENGTH)
        )
        pixels = picture.convert("RGB")
        key = hashlib.sha256(f"{pixels.size} ".encode() + pixels.tobytes()).hexdigest()
        known = cache.get(key)
        if known is None:
            known = cleaned(self._captioner.answer(pixels, text))
            cache.put(key, known)
        return known
