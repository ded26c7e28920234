"""Results in one JSON file that is written whole after each entry, so that a kill loses nothing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FINAL = ("passed", "failed", "measured", "killed")
"""Outcomes that a later call does not try again; "skipped" and "started" are none."""


class Results:
    """Entry name → {"outcome": …, more}. Several processes may write, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self.reload()

    def reload(self) -> None:
        if self.path.exists():
            self.entries = json.loads(self.path.read_text(encoding="utf-8"))

    def put(self, name: str, outcome: str, **more: Any) -> None:
        self.reload()
        self.entries[name] = {"outcome": outcome, "at": time.strftime("%H:%M:%S"), **more}
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.entries, indent=1), encoding="utf-8")
        os.replace(part, self.path)

    def done(self, name: str) -> bool:
        return self.entries.get(name, {}).get("outcome") in FINAL

    def bury(self) -> list[str]:
        """What was running when its process ended counts as killed, and is not tried again. Returns it."""
        self.reload()
        dead = [name for name, entry in self.entries.items() if entry["outcome"] == "started"]
        for name in dead:
            self.put(name, "killed", why="its process ended or ran out of time")
        return dead
