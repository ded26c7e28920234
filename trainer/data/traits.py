"""What a picture looks like in two numbers: to find it again, and to know whether it is sharp.

The hash is the difference hash: of the picture at 9 x 8 grey pixels, whether each is darker than its right
neighbour. Re-encoding, scaling and small corrections change few of its 64 bits. Sharpness is the variance of
the Laplacian, in grey levels squared, at 512 pixels on the longer side, so that sizes can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

_LONG_SIDE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    look: int
    """Difference hash, 64 bits."""
    sharpness: float
    """Variance of the Laplacian."""
    contrast: float
    """Standard deviation of the grey levels, 0 to 127."""


def traits_of(image: Image.Image) -> Traits:
    """Of a picture in mode RGB or RGBA."""
    scale = min(1.0, _LONG_SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    # By a whole number first, which costs a fifth of scaling at once.
    whole = max(1, max(image.size) // _LONG_SIDE)
    small = image.reduce(whole)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    small = small.convert("L").resize(size, Image.Resampling.BILINEAR)
    grey = np.asarray(small, dtype=np.float32)
    tiny = np.asarray(small.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (tiny[:, :-1] < tiny[:, 1:]).flatten()
    return Traits(
        look=int.from_bytes(np.packbits(bits).tobytes(), "big"),
        sharpness=_laplacian_variance(grey),
        contrast=float(grey.std()),
    )


def _laplacian_variance(grey: np.ndarray) -> float:
    """grey: [H, W], 0 to 255."""
    if min(grey.shape) < 3:
        return 0.0
    centre = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * centre).var())
