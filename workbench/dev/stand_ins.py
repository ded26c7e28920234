"""Stand-ins for packages that ComfyUI's files import at the top and that nothing here calls.

Only for a machine without internet that lacks them (`dev.py gpu`). Whatever is called says which package is
missing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = ("av", "scipy", "torchaudio", "torchvision")


def install() -> list[str]:
    """From now on what is missing of NAMES can be imported. Returns what is."""
    missing = [name for name in NAMES if importlib.util.find_spec(name) is None]
    if missing:
        _let_others_look(missing)
        sys.meta_path.append(_Finder(missing))
    return missing


def _let_others_look(missing: Sequence[str]) -> None:
    """transformers and diffusers ask once whether a package is there; they shall hear that it is not."""
    import diffusers.utils  # noqa: F401  # asks when it is imported
    import transformers.utils.import_utils as asked

    for name in missing:
        if question := getattr(asked, f"is_{name}_available", None):
            question()


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        known = fullname.partition(".")[0] in self.names
        return ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.__name__}.{name}", (), {})


class _Missing(type):
    """A name within a missing package: it can stand in an annotation, and be asked for more names."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        package = cls.__name__.partition(".")[0]
        raise ImportError(f"{cls.__name__} was called, and {package} is not on this machine; install it")
