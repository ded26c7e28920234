"""`python dev.py demo`: trains a LoRA in a real ComfyUI with a workflow that the pack ships.

Everything is there without a download: a small trained base model, pictures of a figurine that it has never
seen, and a server on this machine. `--photos` takes the other example workflow, on a folder of pictures of
mixed sizes and a checkpoint with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from .. import ROOT
from ..client import Client, Event, Prompt, PromptRejected, Result
from ..demo.shows import PHOTOS, SUBJECT, Show
from ..dev import base, server
from ..dev.steps import LOGS, SetupError, say
from ..workflow import WorkflowError, override, to_prompt

PROGRESS = "in_graph_lora.progress"
"""The event that the pack sends while it trains: `nodes.training_report`."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo", description="Train a small LoRA, end to end.")
    parser.add_argument("--photos", action="store_true", help="mixed pictures, random weights")
    parser.add_argument("--steps", type=int, help="default: the workflow's")
    parser.add_argument("--name", help="of the LoRA; default: the workflow's")
    args = parser.parse_args()
    wishes = {key: value for key, value in (("steps", args.steps), ("name", args.name)) if value is not None}
    try:
        return run(PHOTOS if args.photos else SUBJECT, wishes)
    except (SetupError, PromptRejected, WorkflowError, ConnectionError, TimeoutError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(show: Show, wishes: dict[str, Any]) -> int:
    """wishes: inputs of TrainLoRA that replace those of the workflow."""
    comfyui = Path(os.environ["IGL_COMFYUI"])
    folder = base.prepare()
    show.provide(comfyui, folder)
    log = LOGS / "demo-server.log"
    say(f"Starting ComfyUI (log: {log})")
    with (
        server.start(Path(sys.executable), comfyui, folder, log=log) as running,
        Client(running.url) as client,
    ):
        if failure := server.import_failure(log):
            raise SetupError(failure)
        workflow = ROOT / "workflows" / show.workflow
        prompt = to_prompt(json.loads(workflow.read_text(encoding="utf-8")), client.object_info())
        show.adapt(prompt)
        override(prompt, "TrainLoRA", **wishes)
        say(f"Running {workflow.name} on {running.url}")
        result = client.wait(client.queue(prompt), timeout=3600, on_event=Terminal(prompt).show)
    if result.status != "success":
        raise SetupError(f"the run ended with {result.status}: {_message(result)} (log: {log})")
    print_results(result, prompt, folder)
    return 0


class Terminal:
    """Shows the node that runs, its progress and the loss: a line that is rewritten, or some in a log."""

    def __init__(self, prompt: Prompt, width: int = 24) -> None:
        self.prompt = prompt
        self.width = width
        self.loss = ""
        self._shown: tuple[str, int] | None = None

    def show(self, event: Event) -> None:
        if event.type == PROGRESS and event.data.get("loss") is not None:
            self.loss = f"  loss {event.data['loss']:.4f}"
        elif event.type == "progress":
            self._bar(str(event.data["node"]), event.data["value"], event.data["max"])
        elif event.type == "executed" and sys.stdout.isatty() and self._shown:
            print()
            self._shown = None

    def _bar(self, node: str, value: float, maximum: float) -> None:
        part = value / maximum if maximum else 1.0
        shown = (node, int(part * 10))
        if not sys.stdout.isatty() and shown == self._shown:
            return
        moved_on = self._shown is not None and self._shown[0] != node
        self._shown = shown
        full = int(part * self.width)
        node_type = self.prompt[node]["class_type"] if node in self.prompt else node
        loss = self.loss if node_type == "TrainLoRA" else ""
        text = f"{node_type:<16} {'█' * full}{'░' * (self.width - full)} {value:g}/{maximum:g}{loss}"
        if sys.stdout.isatty():
            print(f"{os.linesep if moved_on else ''}\r\x1b[K{text}", end="", flush=True)
        else:
            print(text, flush=True)


def print_results(result: Result, prompt: Prompt, folder: Path) -> None:
    (trained,) = [node for node, content in prompt.items() if content["class_type"] == "TrainLoRA"]
    shown = result.outputs[trained]["run"][0]
    print("\n\nDone.")
    print(f"  LoRA file    {shown['lora_path']}")
    print(f"  loss curve   {Path(shown['run_dir'], shown['loss_curve'])}")
    if shown["previews"]:
        print(f"  previews     {shown['previews']}")
    for picture in comparison_pictures(result, prompt):
        print(f"  comparison   {folder / picture['type'] / picture['subfolder'] / picture['filename']}")


def comparison_pictures(result: Result, prompt: Prompt) -> list[dict[str, str]]:
    """What SaveImage has saved of CompareBaseline's grid."""
    pictures = []
    for node, content in prompt.items():
        images = content["inputs"].get("images")
        if content["class_type"] == "SaveImage" and isinstance(images, list):
            source = prompt[images[0]]["class_type"]
            if source == "CompareBaseline":
                pictures += result.outputs.get(node, {}).get("images", [])
    return pictures


def _message(result: Result) -> str:
    error = result.error or {}
    return f"{error.get('node_type', '')}: {error.get('exception_message', '').strip()}"


if __name__ == "__main__":
    sys.exit(main())
