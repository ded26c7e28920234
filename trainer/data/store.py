"""Latents and conditions on disk: one safetensors file an entry, named by all that its content depends on.

Entries never change, so processes share them without locks. What is torn or altered does not fit its own
checksum and counts as missing; so does what another process, or a user, has deleted. The folder is held to a
size: what was not used for longest goes first, but nothing that a living run holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import psutil
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import StorageError
from ..events import Emit, Notice
from ..files import UNFINISHED, read_json, write_json, write_whole

GB = 10**9
DEFAULT_LIMIT = 20 * GB
IN_MEMORY = 256 * 10**6
"""Bytes of entries that were used last and stay in memory: small datasets are read once."""

SPARE = GB
"""Bytes of the disk that are left for what a run has to write."""

_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
_LEASES = "in-use"
_ROOM = 0.9
"""Share of the limit that is left when something has to go, so that it does not happen at every entry."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError)


def key_of(*parts: Any) -> str:
    """Name of the entry that depends on these, whose `repr` says all of them."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """tensors: on the CPU, no two over one storage. constants: whatever JSON can say."""

    tensors: Mapping[str, Tensor]
    constants: Any = None

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    @property
    def has_nan(self) -> bool:
        return any(bool(t.isnan().any()) for t in self.tensors.values() if t.is_floating_point())


class Store:
    """Entries by key, in a folder or, where that cannot be, in memory."""

    def __init__(self, folder: Path | None, emit: Emit, limit: int = DEFAULT_LIMIT) -> None:
        """folder: None keeps everything in memory. limit: bytes in the folder."""
        self.folder = folder if limit else None
        self.emit, self.limit = emit, limit
        self._writable = self.folder is not None
        self._unwritten: dict[str, Entry] = {}
        self._recent: OrderedDict[str, Entry] = OrderedDict()
        self._recent_bytes = 0
        self._damaged: set[str] = set()
        self._held: dict[str, None] = {}
        self._told = 0
        """How many of them the other processes know of."""
        self._lease = f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self._size = usage(folder)[1] if folder else 0
        self._evict_above = limit
        self._lock = Lock()

    def __contains__(self, key: str) -> bool:
        if key in self._unwritten:
            return True
        return self.folder is not None and key not in self._damaged and self._path(key).exists()

    def shape(self, key: str, name: str) -> tuple[int, ...] | None:
        """Of a tensor, from the file's header alone; None where the entry is missing or torn."""
        if key in self._unwritten:
            return tuple(self._unwritten[key].tensors[name].shape)
        if self.folder is None:
            return None
        try:
            with safetensors.safe_open(self._path(key), "pt") as file:
                return tuple(file.get_slice(name).get_shape())
        except _UNREADABLE:
            self._forget(key)
            return None

    def get(self, key: str, *, keep: bool = True) -> Entry | None:
        """None where the entry is missing or damaged: then it has to be made again. From any thread.

        keep: in memory, among those that were used last.
        """
        with self._lock:
            if (known := self._unwritten.get(key) or self._recent.get(key)) is not None:
                if key in self._recent:
                    self._recent.move_to_end(key)
                return known
        if self.folder is None or key in self._damaged:
            return None
        try:
            entry = _read(self._path(key), key)
        except _UNREADABLE:
            self._forget(key)
            return None
        if keep:
            self._remember(key, entry)
        return entry

    def check(self, key: str) -> None:
        """Reads the file again; one that is damaged counts as missing from here on."""
        if self.folder is None or key in self._unwritten:
            return
        try:
            _read(self._path(key), key)
        except _UNREADABLE:
            self._forget(key)

    @property
    def held(self) -> list[str]:
        return list(self._held)

    def put(self, key: str, entry: Entry) -> None:
        """Kept in memory, and said once, where the folder cannot be written; so is what holds NaN, unsaid."""
        if not self._writable or entry.has_nan:
            self._unwritten[key] = entry
            return
        data = _written(key, entry)
        try:
            self._check_room()
            write_whole(self._path(key), data, sync=False)
        except StorageError as error:
            self._unwritten[key] = entry
            self._writable = False
            self.emit(Notice(message=f"what is encoded from here on stays in memory: {error}"))
            return
        self._damaged.discard(key)
        self._held[key] = None
        self._size += len(data)
        if self._size > self._evict_above:
            self._evict()

    def hold(self, keys: Iterable[str]) -> None:
        """No eviction takes these, nor what was put since, until `release`."""
        if self.folder is None:
            return
        for key in keys:
            if key not in self._held:
                self._held[key] = None
                with contextlib.suppress(OSError):
                    os.utime(self._path(key))
        if len(self._held) > self._told:
            self._told = len(self._held)
            with contextlib.suppress(StorageError):  # the first entry that is put says so
                write_json(self.folder / _LEASES / self._lease, {"keys": [*self._held]})

    def release(self) -> None:
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / _LEASES / self._lease).unlink(missing_ok=True)
        self._held.clear()
        self._told = 0

    def _check_room(self) -> None:
        assert self.folder is not None
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = SPARE
        with contextlib.suppress(OSError):  # then writing says what is wrong
            free = shutil.disk_usage(there).free
        if free < SPARE:
            raise StorageError(f"only {free / GB:.1f} GB are free on the disk of {self.folder}; make space")

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"

    def _remember(self, key: str, entry: Entry) -> None:
        with self._lock:
            if (before := self._recent.pop(key, None)) is not None:
                self._recent_bytes -= before.nbytes
            self._recent[key] = entry
            self._recent_bytes += entry.nbytes
            while self._recent_bytes > IN_MEMORY:
                self._recent_bytes -= self._recent.popitem(last=False)[1].nbytes

    def _forget(self, key: str) -> None:
        self._damaged.add(key)  # where it cannot be deleted
        with self._lock:
            if (known := self._recent.pop(key, None)) is not None:
                self._recent_bytes -= known.nbytes
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self._path(key).unlink()

    def _evict(self) -> None:
        """Down to the limit, or to what living runs hold."""
        assert self.folder is not None
        files = sorted(_entries(self.folder), key=lambda f: f[2])
        held = {*self._held, *_leased(self.folder)}
        self._size = sum(size for _, size, _ in files)
        for path, size, _ in files:
            if self._size <= _ROOM * self.limit:
                break
            if path.stem not in held:
                with contextlib.suppress(OSError):
                    path.unlink()
                    self._size -= size
        if self._size > self.limit and self._evict_above == self.limit:
            self.emit(
                Notice(
                    message=f"this run needs more than the {self.limit / GB:g} GB that the cache may take;"
                    " it takes that much until other runs need the room"
                )
            )
        self._evict_above = max(self.limit, int(1.05 * self._size))


def size_of(entry: Entry) -> int:
    """Bytes of its file."""
    return len(_written("0" * 32, entry))


def usage(folder: Path) -> tuple[int, int]:
    """(entries, bytes) of a cache."""
    sizes = [size for _, size, _ in _entries(folder)]
    return len(sizes), sum(sizes)


def clear(folder: Path) -> tuple[int, int]:
    """Delete all entries of a cache, and nothing else; returns (entries, bytes) that went.

    Runs that use them encode them again.
    """
    gone = []
    for path, size, _ in _entries(folder):
        with contextlib.suppress(OSError):
            path.unlink()
            gone.append(size)
    _leased(folder)  # clears those of dead processes
    return len(gone), sum(gone)


def _entries(folder: Path) -> Iterator[tuple[Path, int, float]]:
    """(file, bytes, time of last use)"""
    for part in folder.glob("[0-9a-f][0-9a-f]"):
        if part.is_symlink():
            continue  # nothing outside of the cache is counted or deleted
        with contextlib.suppress(OSError), os.scandir(part) as files:
            for file in files:
                if _NAME.fullmatch(file.name):
                    info = file.stat()
                    yield Path(file.path), info.st_size, info.st_mtime
                elif file.name.endswith(UNFINISHED) and not _lives(file.name.split(".")[-2]):
                    Path(file.path).unlink()


def _leased(folder: Path) -> set[str]:
    """Keys that living processes hold."""
    keys: set[str] = set()
    for path in folder.glob(f"{_LEASES}/*.json"):
        if not _lives(path.name.partition("-")[0]):
            path.unlink(missing_ok=True)
        elif isinstance(said := read_json(path), dict):
            keys.update(map(str, said.get("keys", ())))
    return keys


def _lives(pid: str) -> bool:
    return pid.isdecimal() and psutil.pid_exists(int(pid))


def _written(key: str, entry: Entry) -> bytes:
    constants = json.dumps(entry.constants)
    tensors = {name: t.contiguous() for name, t in entry.tensors.items()}
    checksum = _checksum(key, constants, tensors)
    metadata = {"key": key, "constants": constants, "checksum": checksum}
    return safetensors.torch.save(tensors, metadata)


def _read(path: Path, key: str) -> Entry:
    """Raises one of _UNREADABLE for what is not whole."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header["__metadata__"]
    tensors = safetensors.torch.load(data)
    if metadata["checksum"] != _checksum(key, metadata["constants"], tensors):
        raise ValueError(f"{path} is not what was written")
    return Entry(tensors, json.loads(metadata["constants"]))


def _checksum(key: str, constants: str, tensors: Mapping[str, Tensor]) -> str:
    h = hashlib.blake2b(f"{key}\0{constants}".encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()
