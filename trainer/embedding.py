"""The vectors of Textual Inversion: trained, and in files.

Beside a LoRA they travel as `bundle_emb.<placeholder>.<text encoder>`, the names under which LoRA files of
other trainers carry embeddings. A file of their own has a text encoder's name for each: `clip_l`, `t5xxl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .adapters.lora_file import read_lora
from .adapters.metadata import of_embedding, tensors_hash
from .adapters.names import is_text_encoder
from .errors import LoraFileError

BUNDLED = "bundle_emb."


def changes_text(name: str) -> bool:
    """Whether a tensor of a LoRA file changes what a caption becomes."""
    return name.startswith(BUNDLED) or is_text_encoder(name)


class Embedding:
    """Trainable vectors, by the name of the text encoder that reads them."""

    def __init__(self, placeholder: str, vectors: Mapping[str, nn.Parameter]) -> None:
        """vectors: [n, d] each, fp32."""
        self.placeholder = placeholder
        self.vectors = dict(vectors)

    def anchor(self) -> Tensor:
        """0, through which a vector that a batch does not use has the gradient 0 and not none, as a row of
        the whole table has."""
        return sum((v.sum() for v in self.vectors.values()), torch.zeros(())) * 0

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": list(self.vectors.values()), "lr": lr}]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: v.detach().to("cpu", copy=True) for name, v in self.vectors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = self.vectors
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise LoraFileError(
                f"the saved state has other vectors ({', '.join(state) or 'none'}) than this embedding"
                f" ({', '.join(own)}); go on with the CLIP of the first run, or start a new one"
            )
        with torch.no_grad():
            for name, v in own.items():
                v.copy_(state[name])

    def file_tensors(self) -> dict[str, Tensor]:
        """Under the names that they have beside a LoRA."""
        return {f"{BUNDLED}{self.placeholder}.{name}": v for name, v in self.state_dict().items()}


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """(what is no embedding, placeholder → text encoder → vectors [n, d])

    Raises LoraFileError for a bundled tensor that is no list of vectors.
    """
    rest: dict[str, Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(BUNDLED):
            rest[key] = tensor
            continue
        placeholder, _, name = key.removeprefix(BUNDLED).partition(".")
        vectors = tensor.ndim == 2 and tensor.is_floating_point() and bool(tensor.isfinite().all())
        if not placeholder or not name or not vectors:
            raise LoraFileError(f"{key} is no embedding in this LoRA file; choose another file")
        found.setdefault(placeholder, {})[name] = tensor
    return rest, found


def embedding_of(source: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(vectors by text encoder, metadata) of an embedding's own file, from a checkpoint's that bundles it."""
    tensors, metadata = read_lora(source)
    ((placeholder, vectors),) = split(tensors)[1].items()
    about = of_embedding(metadata, placeholder)
    return vectors, {**about, "modelspec.hash_sha256": tensors_hash(vectors)}


def embedding_data(source: Path) -> bytes:
    """The content of that file."""
    vectors, about = embedding_of(source)
    return save(vectors, metadata=about)
