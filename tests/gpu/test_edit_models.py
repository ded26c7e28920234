"""Control pictures on the GPU: what reaches the network is on its device, and gradients are the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ..host.edit_case import EditCase, pair
from ..host.family_case import adapted, relative

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "name", ["sd15 inpaint", "sd15 pix2pix", "flux kontext", "flux fill", "qwen edit plus"]
)
def test_fp32_gradients_with_control_pictures_are_the_cpus(
    name: str, device: torch.device, tmp_path: Path, record_property: Any
) -> None:
    folder, found = pair(tmp_path), []
    for c in (EditCase(name, folder), EditCase(name, folder, device)):
        with adapted(c) as (denoiser, adapter):
            found.append(c.gradients(denoiser, adapter).cpu())
    record_property("relative", error := relative(found[1], found[0]))
    assert error < 1e-5
