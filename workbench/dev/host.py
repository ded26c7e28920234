"""ComfyUI inside this process, for tests and for scripts that build models with its classes."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from .. import ROOT
from . import base, comfyui, stand_ins
from .steps import SetupError

_PRIVATE: list[Path] = []


def private_comfyui(*, cpu: bool = True) -> Path:
    """ComfyUI inside this process with all its folders in a temporary base directory; that.

    The first call of a process decides whether it is on the CPU: see `import_comfyui`.
    """
    if _PRIVATE:
        return _PRIVATE[0]
    found = os.environ.get("IGL_COMFYUI") or comfyui.find()
    if found is None:
        raise SetupError("ComfyUI is not here yet: start the tests with `python dev.py test`")
    folder = Path(tempfile.mkdtemp(prefix="in-graph-lora-host-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    import_comfyui(Path(found), base.prepare(folder), cpu=cpu)
    _PRIVATE.append(folder)
    return folder


def keep_root_off_path(*first: Path) -> None:
    """The pack's own folder leaves sys.path, where its nodes/ would shadow ComfyUI's nodes.py.

    first: what is searched before all else. The only place that edits sys.path.
    """
    sys.path[:] = [*map(str, first), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]


def import_comfyui(comfyui: Path, base: Path | None = None, *, cpu: bool = True) -> None:
    """Makes `import comfy`, `folder_paths` and ComfyUI's `nodes` work.

    base: where all of ComfyUI's folders are; None means its own. Has to come before the first import of
    anything of ComfyUI's, which reads the arguments at import.
    """
    keep_root_off_path(comfyui)
    if os.environ.get("IGL_STAND_INS"):
        stand_ins.install()
    from comfy.cli_args import args

    args.cpu = cpu
    if base is None:
        return
    args.base_directory = str(base)
    import folder_paths

    assert Path(folder_paths.base_path) in (base, base.resolve()), (
        "ComfyUI was imported before it was told its base directory"
    )


def dynamic_vram() -> bool:
    """Switches on what ComfyUI's main.py does on an NVIDIA card: weights come at use. False: it cannot be.

    Has to come before the first model is loaded.
    """
    import comfy.memory_management
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy_aimdo.control as aimdo

    if not aimdo.init() or not aimdo.init_devices(d.index for d in mm.get_all_torch_devices()):
        return False
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return True


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
