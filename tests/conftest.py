"""The pack under a fixed name, and a real server for the tests that ask for one.

The repository root stays off sys.path: its nodes/ would shadow ComfyUI's nodes.py. So the packages in it are
registered by file: `in_graph_lora` (the pack, as ComfyUI would load it) and `workbench`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from workbench.client import Client

ROOT = Path(__file__).resolve().parent.parent

# Read when torch is imported, here and in servers. The networks are too small for more threads, tests run in
# a process a core, and sums have one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _register(name: str, folder: Path) -> None:
    """`import name` from now on means the package in `folder`."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_register("workbench", ROOT / "workbench")

from workbench.dev.host import keep_root_off_path, register_pack  # noqa: E402

keep_root_off_path()
register_pack()

from workbench.dev import base  # noqa: E402
from workbench.dev import comfyui as comfyui_tools  # noqa: E402
from workbench.dev import server as server_tools  # noqa: E402
from workbench.dev.steps import LOGS, only_one_setup  # noqa: E402
from workbench.miniature import checkpoint  # noqa: E402

SLOWEST_FIRST = ["live", "web", "workbench", "host", "parity", "gpu", "unit"]
"""Workers take whole files; one that began a long file last would keep all others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank[item.path.relative_to(ROOT / "tests").parts[0]])
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu or os.environ.get("IGL_REHEARSE_GPU"):  # then their code runs on the CPU
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of the ComfyUI that is tested against."""
    folder = os.environ.get("IGL_COMFYUI") or comfyui_tools.find()
    if folder is None:
        pytest.fail("ComfyUI is not here yet: start the tests with `python dev.py test`")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_checkpoint(comfyui: Path) -> Path:
    """A file in the SD1.5 format with generated weights (340 MB), kept in .cache since it takes 15 s."""
    script = ROOT / "workbench" / "weights.py"
    path = ROOT / ".cache" / "checkpoints" / "tiny-sd15.safetensors"
    with only_one_setup():
        if not path.exists() or path.stat().st_mtime < script.stat().st_mtime:
            command = [sys.executable, "-m", "workbench.weights", path, "--comfyui", comfyui]
            subprocess.run(command, check=True, cwd=ROOT)
    return path


@pytest.fixture(scope="session")
def miniature_checkpoint(comfyui: Path) -> Path:
    """The trained miniature base (270 MB), kept in .cache."""
    path = ROOT / ".cache" / "checkpoints" / "miniature-sd3.safetensors"
    with only_one_setup():
        if not checkpoint.is_current(path):
            command = [sys.executable, "-m", "workbench.miniature.checkpoint", path, "--comfyui", comfyui]
            subprocess.run(command, check=True, cwd=ROOT)
    return path


@pytest.fixture(scope="session")
def server(
    comfyui: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[server_tools.Server]:
    """A real ComfyUI with the pack, in a base directory of its own, shared by all tests of the session.

    It has one checkpoint, tiny-sd15.safetensors. Its address is `server.url`, its folders `server.base`.
    """
    folder = base.prepare(tmp_path_factory.mktemp("comfyui-base"))
    _link_or_copy(tiny_checkpoint, folder / "models" / "checkpoints" / tiny_checkpoint.name)
    log = LOGS / f"test-server-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.log"
    frontend = os.environ.get("IGL_FRONTEND")
    more = ["--front-end-root", frontend] if frontend else []
    with server_tools.start(Path(sys.executable), comfyui, folder, log=log, more=more) as running:
        if failure := server_tools.import_failure(log):
            pytest.fail(failure, pytrace=False)
        yield running


@pytest.fixture
def client(server: server_tools.Server) -> Iterator[Client]:
    from workbench.client import Client  # needs aiohttp, which a machine that runs no server may lack

    with Client(server.url) as connected:
        yield connected


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
