"""Captions by a folder in the format of transformers: BLIP, Florence-2, LLaVA, JoyCaption, Qwen-VL, …"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..devices import random_kept
from ..errors import ModelError
from .captioners import CaptionRequest

log = logging.getLogger(__name__)

TASKS = {"florence2": "<MORE_DETAILED_CAPTION>"}
"""What models that do not chat are told, by their `model_type`; the others without a chat template are told
nothing, and describe what they see."""


class VisionLanguageCaptioner:
    """The engine's `Captioner`. Nothing is downloaded, no code from the folder is run, no pickle is read."""

    def __init__(
        self,
        folder: Path,
        request: CaptionRequest,
        *,
        device: torch.device,
        dtype: torch.dtype,
        check: Callable[[], None],
    ) -> None:
        """check: called for each token; what it raises ends the captioning. Raises ModelError."""
        import transformers

        where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        named = "torch_dtype" if _older(transformers.__version__, (4, 56)) else "dtype"
        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(str(folder), **where)
            loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                str(folder), **where, use_safetensors=True, output_loading_info=True, **{named: dtype}
            )
        except Exception as error:  # it raises nearly anything on a broken or unknown folder
            raise ModelError(_unusable(folder, error)) from error
        model, loading = loaded
        if missing := sorted(loading["missing_keys"]):
            raise ModelError(
                f"model folder {folder.name}: lacks {len(missing)} weights, such as {missing[0]}; download"
                " it again"
            )
        self._model: Any = model.eval().to(device)
        self._request, self._device, self._dtype, self._check = request, device, dtype, check
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        tokenizer.padding_side = "left"  # what is written goes on at the right
        self.batch = request.batch if tokenizer.pad_token_id is not None else 1

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Image.Image], seed: int) -> list[str]:
        inputs = self._inputs(pictures)
        drawing = {"temperature": self._request.temperature} if self._request.draws else {}
        with random_kept(self._device):
            torch.manual_seed(seed)
            out: Tensor = self._model.generate(
                **inputs,
                max_new_tokens=self._request.max_length,
                do_sample=self._request.draws,
                stopping_criteria=[self._never_stop],
                **drawing,
            )
        asked = inputs.get("input_ids")
        if asked is not None and torch.equal(out[:, : asked.shape[1]], asked):
            out = out[:, asked.shape[1] :]
        return self._processor.batch_decode(out, skip_special_tokens=True)

    def close(self) -> None:
        """Let go of the model's memory."""
        self._model = None

    def _inputs(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Each picture with the same question, as the model's own processor puts it."""
        settings: dict[str, Any] = {"return_tensors": "pt"}
        if text := self._text():
            settings |= {"text": [text] * len(pictures), "padding": True}
            bos = getattr(getattr(self._processor, "tokenizer", None), "bos_token", None)
            if bos and text.startswith(bos):
                settings["add_special_tokens"] = False
        # One list for each text: some processors cannot tell otherwise which picture belongs where.
        images = [[picture] for picture in pictures] if self._chats else list(pictures)
        made = self._processor(images=images, **settings)
        return {
            name: value.to(self._device, self._dtype if value.is_floating_point() else None)
            for name, value in made.items()
        }

    @property
    def _chats(self) -> bool:
        return bool(getattr(self._processor, "chat_template", None))

    def _text(self) -> str:
        if not self._chats:
            return self._request.prompt.strip() or TASKS.get(self._model.config.model_type, "")
        question = self._request.question
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        text = self._chat(parts)
        # Templates for plain text write the list down as Python does, and put the picture in by themselves.
        return self._chat(question) if "'type'" in text else text

    def _chat(self, content: Any) -> str:
        turns = [{"role": "user", "content": content}]
        return self._processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _never_stop(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        self._check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _older(version: str, than: tuple[int, int]) -> bool:
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) < than


def _unusable(folder: Path, error: Exception) -> str:
    said = " ".join(str(error).split())
    why = f"cannot be loaded by transformers ({said[:300]}); choose a model that sees pictures and writes"
    if "trust_remote_code" in said or "custom code" in said:
        why = (
            "needs code of its own, which is not run; use a version that transformers knows by itself, such"
            " as florence-community/Florence-2-base for Florence-2"
        )
    elif "safetensors" in said:
        why = "has no weights in safetensors, and no others are read; convert them"
    return f"model folder {folder.name}: {why}"
