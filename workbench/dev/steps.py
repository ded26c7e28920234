"""Steps of the set-up: said aloud, logged to a file, and failing with one sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import ROOT

CACHE = ROOT / ".cache"
LOGS = CACHE / "logs"


class SetupError(Exception):
    """A step failed. The message is one sentence that names the thing and the remedy."""


def say(message: str) -> None:
    print(f"[dev] {message}", flush=True)


def run_logged(
    command: Sequence[object], log: str, failure: str, env: Mapping[str, str] | None = None
) -> None:
    """Runs a command with its output in .cache/logs/<log>.log; raises SetupError(failure) if it fails."""
    path = LOGS / f"{log}.log"
    with full_disk_explained():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            code = subprocess.call(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
    if code != 0:
        raise SetupError(f"{failure}{_likely_cause(path)} (log: {path})")


def _likely_cause(log: Path) -> str:
    text = log.read_text(errors="replace")
    causes = {
        "No space left on device": "the disk is full",
        "ENOSPC": "the disk is full",
        "name resolution": "there is no network",
        "NameResolutionError": "there is no network",
        "Name or service not known": "there is no network",
        "getaddrinfo failed": "there is no network",
        "NewConnectionError": "there is no network",
        "Failed to establish a new connection": "there is no network",
        "dns error": "there is no network",
        "No matching distribution found": "the package index does not have it or is out of reach",
        "No solution found": "the packages do not fit together or are not made for this Python",
    }
    return next((f": {cause}" for sign, cause in causes.items() if sign in text), "")


@contextmanager
def full_disk_explained() -> Iterator[None]:
    """A full disk is the one OSError that the user can do something about."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SetupError(f"The disk with {ROOT} is full; free some space and run this again.") from error
        raise


@contextmanager
def only_one_setup() -> Iterator[None]:
    """Two set-ups at once would unpack and install over each other, so the second waits for the first."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "setup.lock").open("w") as handle:
        if not _lock(handle.fileno(), wait=False):
            say("Waiting for another set-up of this folder to end.")
            _lock(handle.fileno(), wait=True)
        yield  # closing the file, or dying, gives the lock back


def _lock(fd: int, *, wait: bool) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(fd, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            return _lock(fd, wait=True) if wait else False  # LK_LOCK gives up after ten seconds
        return True
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
