"""What SD3's text side makes of a caption, with CLIP-L alone and random weights: words keep their identity.

The context is [77, 4096] of which CLIP-L fills the first 768 columns, the pooled vector is [2048], of which
it fills the first 768. Only those columns are kept here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WIDTH = 768
CLIP_SEED = 0
"""Of the frozen random stream that is the text encoder."""


def encode(captions: Sequence[str], batch: int = 50) -> tuple[Tensor, Tensor]:
    """(contexts [N, 77, 768], pooled [N, 768]), both fp16."""
    import comfy.sd1_clip

    from ..weights import clip_l

    model = comfy.sd1_clip.SDClipModel(
        layer="hidden", layer_idx=-2, dtype=torch.float32, layer_norm_hidden_state=False,
        return_projected_pooled=False,
    )  # fmt: skip
    weights = clip_l(np.random.RandomState(CLIP_SEED))
    model.transformer.load_state_dict(
        {name: torch.from_numpy(weight.astype(np.float16)) for name, weight in weights.items()}, strict=False
    )
    tokenizer = comfy.sd1_clip.SDTokenizer()
    contexts, pooled = [], []
    for i in range(0, len(captions), batch):
        weighted = [tokenizer.tokenize_with_weights(caption)[0] for caption in captions[i : i + batch]]
        tokens = [[token for token, _ in pairs] for pairs in weighted]
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            context, last, *_ = model(tokens)
        contexts.append(context.half())
        pooled.append(last.half())
    return torch.cat(contexts), torch.cat(pooled)
