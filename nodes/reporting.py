"""Events of a run → progress bar and text on the node."""

from __future__ import annotations

from ..trainer.events import Event, Notice, Phase, Planned
from ..trainer.host.progress import NodeProgress


class Reporter:
    """Call it with events. `notices` collects what the user must be told at the end too."""

    def __init__(self, node_id: str | None) -> None:
        self.progress = NodeProgress(node_id)
        self.notices: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Phase):
            self.progress.update(event.done, event.total)
            self.progress.text(f"{event.name} {event.done + 1}/{event.total}")
        elif isinstance(event, Planned):
            self.progress.text(event.line)
        elif isinstance(event, Notice):
            self.notices.append(event.message)
            self.progress.text(event.message)
