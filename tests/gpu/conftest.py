"""What only a GPU can show. Without one the tests are skipped; IGL_REHEARSE_GPU=1 runs their code on the CPU.

IGL_DYNAMIC_VRAM=1: under dynamic VRAM, which is switched on for a whole process. `dev.py gpu` runs the files
both ways and, by IGL_RESULTS, gets the outcome of each test in its JSON file as soon as there is one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from workbench.dev import host
from workbench.dev.results import Results

if TYPE_CHECKING:
    from ..host.loaded import Loaded

HOST_BASE = host.private_comfyui(cpu=not torch.cuda.is_available())
DYNAMIC = bool(os.environ.get("IGL_DYNAMIC_VRAM"))
STARTED = DYNAMIC and host.dynamic_vram()
RESULTS = Results(Path(os.environ["IGL_RESULTS"])) if "IGL_RESULTS" in os.environ else None


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; in a rehearsal the CPU."""
    import comfy.model_management as mm

    found = mm.get_torch_device()
    if torch.cuda.is_available():
        assert found.type == "cuda", "ComfyUI of this process is on the CPU: run tests/gpu alone"
        assert STARTED == DYNAMIC, "comfy-aimdo does not start here, so there is no dynamic VRAM"
    return found


@pytest.fixture(scope="session")
def dynamic() -> bool:
    """Whether models come to the GPU layer by layer, at use."""
    return STARTED


@pytest.fixture(autouse=True)
def _plain_fp32() -> Iterator[None]:
    """fp32 is fp32: TF32, which cuDNN takes by itself, has 10 bits."""
    with warnings.catch_warnings():  # torch has two ways to say this, and warns of the one it will lose
        warnings.simplefilter("ignore")
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _room() -> Iterator[None]:
    """No model of another test on the GPU, and no cap."""
    yield
    import comfy.model_management as mm

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)
        mm.unload_all_models()
        mm.soft_empty_cache()


@pytest.fixture(scope="session")
def _loaded(tiny_checkpoint: Path) -> Loaded:
    from ..host.loaded import load

    return load(tiny_checkpoint)


@pytest.fixture
def loaded(_loaded: Loaded, device: torch.device) -> Loaded:
    """Model, CLIP and VAE of the generated checkpoint, read from a file, the model on the GPU."""
    import comfy.model_management as mm

    with torch.inference_mode():
        mm.load_models_gpu([_loaded.model])
    return _loaded


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from ..host.loaded import write_pictures

    return write_pictures(tmp_path / "pictures", [(64, 64)] * 2)


# What `dev.py gpu` hears.


def entry(nodeid: str) -> str:
    return f"{nodeid} (dynamic VRAM)" if DYNAMIC else nodeid


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if RESULTS is None:
        return
    done = [item for item in items if RESULTS.done(entry(item.nodeid))]
    if done:
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item not in done]


def pytest_runtest_logstart(nodeid: str) -> None:
    if RESULTS is not None:
        RESULTS.put(entry(nodeid), "started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The call counts, and whatever else failed or was skipped."""
    if RESULTS is None or (report.when != "call" and report.passed):
        return
    more: dict[str, Any] = {"why": str(report.longrepr)[-2000:]} if not report.passed else {}
    if report.user_properties:
        more["figures"] = dict(report.user_properties)
    RESULTS.put(entry(report.nodeid), report.outcome, seconds=round(report.duration, 3), **more)
