"""The text of another trainer's config, in any of its forms, as flat names and values.

Nothing that a config names is opened, and nothing of it is executed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.layouts.kohya import loads as read_toml
from ..errors import ConfigError
from ..safe_yaml import loads as read_yaml

MAX_BYTES = 2_000_000
MAX_ITEMS = 20_000
MAX_DEPTH = 12
SUFFIXES = (".json", ".toml", ".yaml", ".yml", ".txt", ".sh", ".bat", ".cmd", ".ps1", ".safetensors")
LAUNCHER = "launcher "
"""Before the names of what the launcher in front of the script was given."""

_LIST_ITEM = re.compile(r"\.(\d+)(?=\.|$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    values: Mapping[str, Any]
    """Name → value; names of inner tables are joined by dots, and items of lists of tables are numbered."""
    script: str = ""
    """The Python file of a command line."""


def names_a_file(text: str) -> bool:
    """Whether it is the name of a file and no config itself."""
    text = text.strip()
    return len(text) <= 300 and "\n" not in text and "--" not in text and text.lower().endswith(SUFFIXES)


def read_file(name: str, folder: Path) -> Source:
    """A config below `folder`, or the metadata of a LoRA file there. Raises ConfigError."""
    name = name.strip()
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError) as error:
        raise ConfigError(f"config: {name[:80]!r} is no usable file name ({error}); write another") from error
    if not inside:
        raise ConfigError(
            f"config: there is no file {name[:80]!r} in ComfyUI's input folder; put it there, or paste"
            f" its text"
        )
    return read_lora(path) if path.suffix.lower() == ".safetensors" else read_text_file(path)


def read_text_file(path: Path) -> Source:
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise ConfigError(f"config: {path.name} cannot be read ({error.strerror}); check it") from error
    if size > MAX_BYTES:
        raise ConfigError(f"config: {path.name} has {size} bytes; a config has at most {MAX_BYTES}")
    return read_text(data.decode("utf-8-sig", errors="replace"))


def read_lora(path: Path) -> Source:
    """The metadata of a safetensors file. Raises ConfigError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"config: {path.name} is no safetensors file ({error}); choose another") from error
    if not metadata:
        raise ConfigError(f"config: {path.name} has no metadata, so nothing is known of its training")
    return Source(values=metadata)


def read_text(text: str) -> Source:
    """A config as JSON, TOML, YAML or a command line. Raises ConfigError."""
    text = text.strip().removeprefix("\ufeff")
    if len(text) > MAX_BYTES:
        raise ConfigError(f"config: the text has {len(text)} characters; a config has at most {MAX_BYTES}")
    if text.startswith(("{", "[{")):
        return Source(values=flat(_parsed(text, "JSON", json.loads)))
    if re.search(r"(^|\s)--?[A-Za-z]", text) and re.search(r"\.py\b|^\s*--|accelerate", text, re.M):
        return _command_line(text)
    if read_toml is not None and (found := _toml(text)) is not None:
        return Source(values=flat(found))
    return Source(values=flat(_parsed(text, "YAML", read_yaml)))


def _parsed(text: str, form: str, parse: Any) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"config: cannot be read as {form} ({reason}); correct it, or paste it whole"
        ) from error


def _toml(text: str) -> Any:
    assert read_toml is not None
    try:
        return read_toml(text)
    except (ValueError, RecursionError):
        return None


def flat(data: Any) -> dict[str, Any]:
    """Tables within tables under dotted names; lists of plain values stay. Raises ConfigError."""
    if not isinstance(data, Mapping) or not data:
        raise ConfigError(
            "config: this is neither a file name nor a config; paste a TOML, JSON or YAML config, or a"
            " command"
            " line, or name a file in ComfyUI's input folder"
        )
    found: dict[str, Any] = {}
    _flatten(data, "", found, 0)
    return found


def _flatten(value: Any, name: str, found: dict[str, Any], depth: int) -> None:
    tables = isinstance(value, list) and any(isinstance(v, Mapping) for v in value)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if tables else None
    if depth > MAX_DEPTH or len(found) > MAX_ITEMS:
        raise ConfigError("config: too many tables within tables; paste the config of one training")
    if items is None or not value:
        found[name] = value
        return
    for key, inner in items:
        _flatten(inner, f"{name}.{key}" if name else str(key), found, depth + 1)


def without_numbers(name: str) -> str:
    """`process.0.train.lr` as `process.train.lr`."""
    return _LIST_ITEM.sub("", name)


def _command_line(text: str) -> Source:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("#", "REM ", "::"))]
    joined = re.sub(r"[\\^`]\s*\n", " ", "\n".join(lines))
    try:
        words = shlex.split(joined.replace("\\", "\\\\"), comments=False)
    except ValueError as error:
        raise ConfigError(f"config: the command line cannot be read ({error}); check its quotes") from error
    at = next((i for i, word in enumerate(words) if word.endswith(".py")), -1)
    script = re.split(r"[\\/]", words[at])[-1] if at >= 0 else ""
    before = {LAUNCHER + name: value for name, value in _arguments(words[: max(at, 0)]).items()}
    return Source(values={**before, **_arguments(words[at + 1 :])}, script=script)


def _arguments(words: list[str]) -> dict[str, Any]:
    """`--name value`, `--name=value`, `--name a b` (a list) and `--name` (True)."""
    found: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            found[name] = value if equals else True
        elif name:
            now = found[name]
            found[name] = word if now is True else [*now, word] if isinstance(now, list) else [now, word]
    return found
