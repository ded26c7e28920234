"""Captioners that ComfyUI brings or makes room for: the CLIP on the canvas, and folders of models."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import folder_paths
import numpy as np
import torch
from PIL import Image

from ..data.captioners import CaptionCache, Captioner, CaptionRequest, Told, caption_pictures
from ..data.records import ImageRecord
from ..data.tagger import TAGS, TagCaptioner
from ..data.vision_language import VisionLanguageCaptioner
from ..errors import ModelError
from .caption_tokens import without_embeddings
from .identity import clip_fingerprint
from .paths import captions_directory
from .progress import check_interrupt

if TYPE_CHECKING:
    from comfy.sd import CLIP

log = logging.getLogger(__name__)

Start = Callable[[], AbstractContextManager[Captioner]]

OTHERWISE = (
    "connect one that sees and writes (Qwen3-VL, Qwen3.5, Gemma 3 or Gemma 4 by Load CLIP, or the one of"
    " Krea 2), or choose the method model_folder"
)
_CHAT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
"""Qwen's template for a question about a picture."""

_DRAWING = {"top_k": 64, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05}
"""As core's Generate Text has them."""

_ROOM = 1.3
"""Memory for a model, its pictures and its past words, in sizes of its weights."""


class ClipCaptioner:
    """The engine's `Captioner`: tokenize, generate, decode, as core's Generate Text does."""

    batch = 1

    def __init__(self, clip: CLIP, request: CaptionRequest) -> None:
        """Raises ModelError for a text encoder that cannot see or cannot write."""
        self._clip: Any = clip
        self._reader: Any = without_embeddings(clip)
        self._request = request
        # Image models tell their text encoder how to edit a picture, and not all let it answer.
        own = getattr(clip.tokenizer, "llama_template_images", "")
        self._template = {"llama_template": _CHAT} if own.startswith("<|im_start|>system") else {}
        check_captions(clip)

    def caption(self, pictures: Sequence[Image.Image], seed: int) -> list[str]:
        return [self.answer(picture, self._request.question, seed) for picture in pictures]

    def answer(self, picture: Image.Image, question: str, seed: int = 0) -> str:
        check_interrupt()
        image = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0).unsqueeze(0)
        tokens = _tokens(self._reader, question, image, **self._template)
        draws = self._request.draws
        drawing = {"temperature": self._request.temperature, "seed": seed, **_DRAWING} if draws else {}
        ids = self._clip.generate(tokens, do_sample=draws, max_length=self._request.max_length, **drawing)
        return self._clip.decode(ids)


def _tokens(clip: Any, text: str, image: torch.Tensor, **template: str) -> Any:
    return clip.tokenize(text, image=image, skip_template=False, min_length=1, thinking=False, **template)


def check_captions(clip: CLIP) -> None:
    """Raises ModelError for a text encoder that takes no picture or writes no text."""
    name = type(clip.cond_stage_model).__name__.strip("_")
    parts = [m.transformer for m in clip.cond_stage_model.modules() if hasattr(m, "transformer")]
    if not hasattr(clip, "generate") or not any(hasattr(part, "generate") for part in parts):
        raise ModelError(f"clip: the text encoder {name} writes no text; {OTHERWISE}")
    try:
        tokens = _tokens(without_embeddings(clip), "a", torch.zeros(1, 64, 64, 3))
    except TypeError:  # its tokenizer takes no pictures
        tokens = {}
    sees = any(hasattr(part, "preprocess_embed") for part in parts)
    if not sees or not _holds_picture(tokens):
        raise ModelError(f"clip: the text encoder {name} does not see pictures; {OTHERWISE}")


def _holds_picture(tokens: Any) -> bool:
    chunks = [chunk for part in tokens.values() for chunk in part] if isinstance(tokens, dict) else []
    return any(isinstance(token[0], dict) for chunk in chunks for token in chunk)


def written_captions(
    records: Iterable[ImageRecord],
    method: str,
    request: CaptionRequest,
    told: Told,
    *,
    clip: CLIP | None,
    folder: str,
) -> Mapping[Path, str]:
    """What a model says of each picture; see `caption_pictures`. method: "clip" or "model_folder"."""
    if method == "clip" and clip is None:
        raise ModelError(f"clip: is not connected, and the method is clip; {OTHERWISE}")
    identity, start = (
        clip_captioner(clip, request) if method == "clip" and clip else folder_captioner(folder, request)
    )
    return caption_pictures(
        records, start, CaptionCache(captions_directory(), identity, request), request, told
    )


def clip_captioner(clip: CLIP, request: CaptionRequest) -> tuple[str, Start]:
    """(its identity, how to start it); the identity is "" when parts of the model cannot be compared."""
    captioner = ClipCaptioner(clip, request)
    digest, unknown = clip_fingerprint(clip)
    return "" if unknown else digest, lambda: nullcontext(captioner)


def folder_captioner(name: str, request: CaptionRequest) -> tuple[str, Start]:
    """The same for a tagger or a model of transformers in a folder; see `model_folder`."""
    folder = model_folder(name)

    @contextmanager
    def start() -> Iterator[Captioner]:
        with _making_room(folder) as device:
            captioner: TagCaptioner | VisionLanguageCaptioner
            if (folder / TAGS).is_file():
                on_gpu = device.type == "cuda"
                captioner = TagCaptioner(folder, request, on_gpu=on_gpu, check=check_interrupt)
            else:
                half = device.type != "cpu" and mm.should_use_bf16(device)
                dtype = torch.bfloat16 if half else torch.float32
                captioner = VisionLanguageCaptioner(
                    folder, request, device=device, dtype=dtype, check=check_interrupt
                )
            try:
                yield captioner
            finally:
                captioner.close()

    return folder_identity(folder), start


def model_folder(name: str) -> Path:
    """An absolute path, or a folder's name in models/LLM or in any folder that ComfyUI has for models."""
    text = name.strip().strip('"').strip()
    if not text:
        raise ModelError(
            "model_folder: is empty; type the path of a folder with a model of transformers or a WD tagger,"
            " or its name in models/LLM"
        )
    roots = [Path(folder_paths.models_dir) / "LLM", Path(folder_paths.models_dir)]
    roots += [Path(root) for entry in folder_paths.folder_names_and_paths.values() for root in entry[0]]
    try:
        tried = [Path(text).expanduser()] if Path(text).is_absolute() else _below(roots, text)
        folder = next((path for path in tried if path.is_dir()), None)
        names = {p.name for p in folder.iterdir()} if folder is not None else set()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model_folder: {text!r} cannot be read ({error}); type it again") from error
    if folder is None:
        raise ModelError(
            f"model_folder: there is no folder {text!r}; type its absolute path, or its name in models/LLM."
            " Nothing is downloaded"
        )
    if not names & {TAGS, "config.json"}:
        raise ModelError(
            f"model_folder: {folder.name} has neither config.json nor {TAGS}; choose the folder that holds"
            " the model's files"
        )
    return folder


def _below(roots: Sequence[Path], name: str) -> list[Path]:
    """In each folder, and never out of it."""
    paths = [(root, root / name) for root in roots]
    return [path for root, path in paths if path.resolve().is_relative_to(root.resolve()) and path != root]


def folder_identity(folder: Path) -> str:
    """Changes when a file's name, size or time changes, in the folder itself."""
    h = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape"))
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        info = path.stat()
        h.update(f"\0{path.name}\0{info.st_size}\0{info.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return h.hexdigest()


@contextmanager
def _making_room(folder: Path) -> Iterator[torch.device]:
    """ComfyUI's device with room for the model, which ComfyUI does not manage; emptied afterwards."""
    device = mm.get_torch_device()
    weights = [p.stat().st_size for suffix in ("safetensors", "onnx") for p in folder.glob(f"*.{suffix}")]
    mm.free_memory(_ROOM * sum(weights), device)
    try:
        yield device
    except torch.OutOfMemoryError:
        log.error(
            "Caption Images: out of memory; lower caption_batch, or choose a smaller model than %s",
            folder.name,
        )
        raise
    finally:
        mm.soft_empty_cache()
