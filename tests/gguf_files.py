"""Weights in the formats of GGUF files, also in those that nothing here writes. Needs the package gguf."""

from __future__ import annotations

import os

import numpy as np
import pytest

SCALES = {
    "Q2_K": ((80, 1.0), (82, -1.5)), "Q3_K": ((108, 1.0),), "Q4_K": ((0, 1.0), (2, -7.5)),
    "Q5_K": ((0, 1.0), (2, -15.5)), "Q6_K": ((208, 1.0),), "IQ4_NL": ((0, 1.0),), "IQ4_XS": ((0, 1.0),),
}  # fmt: skip
"""Formats that the package gguf reads and does not write → where a block has its scales in fp16. Those of the
minimum are given relative to the other, so that the values lie around zero."""


def packed_at_random(shape: tuple[int, ...], kind: str, seed: int = 0) -> np.ndarray:
    """[out, bytes]: any bytes are a weight, once the scales give it a deviation of 1 / √in."""
    import gguf

    quantisation = gguf.GGMLQuantizationType[kind]
    size, nbytes = gguf.GGML_QUANT_SIZES[quantisation]
    rows = shape[0] * shape[1] // size
    blocks = np.random.default_rng(seed).integers(0, 256, (rows, nbytes), dtype=np.uint8)

    def scaled(by: float) -> np.ndarray:
        for at, factor in SCALES[kind]:
            blocks[:, at : at + 2] = np.array([abs(factor) * by], np.float16).view(np.uint8)
        return blocks.reshape(shape[0], -1)

    unit = gguf.quants.dequantize(scaled(1.0), quantisation)
    return scaled(shape[1] ** -0.5 / unit.std())


def folder() -> str:
    """Of the real pack. Skips where there is none."""
    named = os.environ.get("GGUF_PACK")
    if not named:
        pytest.skip("GGUF_PACK names no folder with the pack ComfyUI-GGUF")
    return named
