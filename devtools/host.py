"""ComfyUI inside this process, for tests and for scripts that build models with its classes."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from . import ROOT, base, comfyui
from .steps import SetupError


@lru_cache(maxsize=1)
def private_comfyui() -> Path:
    """ComfyUI inside this process, on the CPU, with all its folders in a temporary base directory; that."""
    found = os.environ.get("IGL_COMFYUI") or comfyui.find()
    if found is None:
        raise SetupError("ComfyUI is not here yet: start the tests with `python dev.py test`")
    folder = Path(tempfile.mkdtemp(prefix="in-graph-lora-host-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    import_comfyui(Path(found), base.prepare(folder))
    return folder


def import_comfyui(comfyui: Path, base: Path, *, cpu: bool = True) -> None:
    """Makes `import comfy`, `folder_paths` and ComfyUI's `nodes` work, with all folders under `base`.

    Has to come before the first import of anything of ComfyUI's, which reads the arguments at import. The
    pack's own folder is taken off sys.path: its nodes/ would shadow ComfyUI's nodes.py.
    """
    sys.path[:] = [str(comfyui), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    from comfy.cli_args import args

    args.cpu = cpu
    args.base_directory = str(base)
    import folder_paths

    assert Path(folder_paths.base_path) == base.resolve() or Path(folder_paths.base_path) == base, (
        "ComfyUI was imported before it was told its base directory"
    )


def register_pack() -> None:
    """`import in_graph_lora` means the pack, by file as ComfyUI loads it: the root stays off sys.path."""
    spec = importlib.util.spec_from_file_location(
        "in_graph_lora", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["in_graph_lora"] = module
    spec.loader.exec_module(module)
