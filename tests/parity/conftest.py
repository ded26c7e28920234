"""ComfyUI in the test process, and the modules of this folder under the package name `parity`."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.dev import host

host.private_comfyui()

_package = types.ModuleType("parity")
_package.__path__ = [str(Path(__file__).parent)]
sys.modules["parity"] = _package


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Sums in one order: the differences that are measured are the networks', not the scheduler's."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
