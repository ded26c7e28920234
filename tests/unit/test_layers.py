"""Imports point one way: web → nodes → trainer, and only trainer/host knows ComfyUI."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "nodes",
    "server",
    "execution",
}
ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("trainer/**/*.py"), *ROOT.glob("nodes/*.py"), ROOT / "__init__.py"])


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Imported modules: those of others, and our own by their path in the repository (trainer.host.model)."""
    others, own = set(), set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            module = ".".join([*above, *filter(None, [node.module])])
            own |= {module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module or "")
    return others, own


def of_comfyui(path: Path) -> set[str]:
    return {name for name in imports(path)[0] if name.split(".")[0] in COMFYUI}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_only_the_host_room_imports_comfyui(path):
    where = path.relative_to(ROOT).as_posix()
    found = of_comfyui(path)
    if where.startswith("trainer/host/"):
        assert not {name for name in found if name.startswith("comfy_api")}, "the node API belongs to nodes/"
    elif where.startswith("nodes/") or where == "__init__.py":
        assert {name.split(".")[0] for name in found} <= {"comfy_api"}
    else:
        assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_from_nodes_to_trainer_to_nothing(path):
    where = path.relative_to(ROOT).as_posix()
    if not where.startswith("trainer/"):
        return
    own = imports(path)[1]
    assert not {name for name in own if name.startswith("nodes")}
    if not where.startswith("trainer/host/"):
        assert not {name for name in own if name.startswith("trainer.host")}


def at_run_time(tree: ast.Module) -> list[ast.ImportFrom]:
    """Relative imports outside of `if TYPE_CHECKING`."""
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level)
    return [n for n in nodes if n not in typing_only]


def modules_behind(path: Path) -> set[Path]:
    """The files of ours that an import of this one runs."""
    found = set()
    for node in at_run_time(ast.parse(path.read_text(encoding="utf-8"))):
        folder = path.parent
        for _ in range(node.level - 1):
            folder = folder.parent
        target = folder.joinpath(*(node.module or "").split("."))
        inside = [target / f"{alias.name}.py" for alias in node.names]
        found |= {f for f in [target.with_suffix(".py"), *inside] if f.is_file()}
    return found


def room(path: Path) -> str:
    """A module of trainer/ itself, or the folder below it."""
    first = path.relative_to(ROOT / "trainer").parts[0]
    return first.removesuffix(".py")


def test_no_module_and_no_room_of_the_trainer_imports_itself_by_a_detour():
    files = [f for f in FILES if f.is_relative_to(ROOT / "trainer") and f.name != "__init__.py"]
    modules = {f: modules_behind(f) - {f} for f in files}
    TopologicalSorter(modules).prepare()  # raises CycleError, which names the cycle
    rooms: dict[str, set[str]] = {}
    for f, behind in modules.items():
        rooms.setdefault(room(f), set()).update(room(b) for b in behind)
    TopologicalSorter({name: behind - {name} for name, behind in rooms.items()}).prepare()


def test_config_stands_on_words_alone():
    options = sorted((ROOT / "trainer" / "options").glob("[a-z]*.py"))
    assert modules_behind(ROOT / "trainer" / "config.py") == set(options)
    behind = set().union(*map(modules_behind, options)) - set(options)
    assert {f.stem for f in behind} == {"errors", "rules", "text"}


def test_the_entry_file_imports_nothing_at_module_level_but_the_standard_library():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {node.module for node in top} == {"__future__", "typing"}


def test_the_entry_file_defines_no_node_class_mappings():
    assert "NODE_CLASS_MAPPINGS" not in (ROOT / "__init__.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_evaluates_code_or_starts_processes(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}
    assert not {name.split(".")[0] for name in imports(path)[0]} & {
        "subprocess",
        "pickle",
        "marshal",
        "shelve",
    }
