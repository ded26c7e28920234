"""The miniature's networks in the parts that a user's models play in Evaluate LoRA."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from . import judge, seer, world

_ASKED = re.compile('"(.+)"')
_KINDS = (tuple(world.WHERE.values()), tuple(f"a {name}" for name in world.OBJECTS))
"""Phrases of which a picture shows one."""
_CLASSES = "colour"


class SeerJudge:
    """The miniature's CLIP as the engine's `Judge`."""

    name, digest, reads = "seer", "miniature", True

    @torch.inference_mode()
    def see(self, pictures: Sequence[Image.Image]) -> Tensor:
        return seer.load_seer().pictures(judge.as_tensor([p.convert("RGB") for p in pictures]))

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        return seer.load_seer().texts(texts)


class SeerAnswerer:
    """Says yes where the picture is nearer to what it is asked about than to the same with another place or
    object: what CLIP does as a classifier without training. It answers nothing where it knows no others."""

    name, digest = "seer", "miniature"

    @torch.inference_mode()
    def answer(self, picture: Image.Image, question: str) -> str:
        part = _ASKED.search(question)
        if part is None:
            return ""
        own = part.group(1)
        for kind in _KINDS:
            for phrase in kind:
                if own.endswith(phrase):
                    others = [own.removesuffix(phrase) + other for other in kind if other != phrase]
                    network = seer.load_seer()
                    near = network.texts([own, *others]) @ network.pictures(judge.as_tensor([picture]))[0]
                    return "yes" if near.argmax() == 0 else "no"
        return ""


@torch.inference_mode()
def logits(pictures: Sequence[Image.Image]) -> Tensor:
    """[N, classes]: of which colour is the figurine? The classifier of the inception score."""
    return judge.load_judge()(judge.as_tensor(list(pictures)).float())[_CLASSES]
