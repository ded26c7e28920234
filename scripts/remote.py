"""Train on a ComfyUI elsewhere that has this pack, and bring the LoRA and its run here.

    python scripts/remote.py http://192.168.1.5:8188 my_workflow.json
    python scripts/remote.py https://worker.example/comfy output/in-graph-lora/jobs/my_lora --output results

The workflow is one that was saved, one in the API format, or a job's folder. Pictures, captions and masks
that are not there yet are sent. When the connection is lost the work goes on there, and is followed again as
soon as it is back, or by the same command. Ctrl-C ends the work and keeps it. docs/remote.md says more.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _pack import PACK, import_pack, print_anything, version

if TYPE_CHECKING:
    from in_graph_lora.trainer.remote.follow import End
    from in_graph_lora.trainer.remote.work import Work

COMFYUI = PACK.parent.parent
INTERRUPTED = 130
TEXTS = 3
"""Of a node: Caption Images has one for each picture."""


def arguments(given: Sequence[str]) -> argparse.Namespace:
    own = (COMFYUI / "main.py").exists()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url", help="of the other ComfyUI, as http://192.168.1.5:8188")
    parser.add_argument("workflow", type=Path, help="JSON file of a workflow, or the folder of a job")
    parser.add_argument(
        "--input",
        type=Path,
        action="append",
        default=[],
        help="folder that relative paths start from; default: input of the ComfyUI around this pack, and the"
        " folder that you are in",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=COMFYUI / "output" if own else Path("output"),
        help="where results go; default: output of the ComfyUI around this pack",
    )
    parser.add_argument("--header", action="append", default=[], help='for a proxy, as "Name: value"')
    parser.add_argument("--patience", type=float, default=60, help="minutes that a connection may be lost")
    parser.add_argument("--any-version", action="store_true", help="whatever version of the pack is there")
    args = parser.parse_args(given)
    if not 0 <= args.patience < 10_000:
        parser.error("--patience: give minutes, 0 or more")
    pairs = [(name.strip(), value.strip()) for name, _, value in (h.partition(":") for h in args.header)]
    if not all(name and value for name, value in pairs):
        parser.error('--header: write it as "Name: value"')
    args.header = dict(pairs)
    args.input = args.input or [*[COMFYUI / "input"][:own], Path()]
    return args


class Stop:
    """Ctrl-C or SIGTERM: the first asks the worker to end, the second ends this script alone."""

    def __init__(self) -> None:
        self.wished = False
        for s in (signal.SIGINT, signal.SIGTERM):
            signal.signal(s, self._take)

    def _take(self, *_: object) -> None:
        if self.wished:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.wished = True
        print("asking the worker to stop and keep what there is; once more leaves it alone", file=sys.stderr)


class Screen:
    """Steps, phases, notices, and the texts that nodes show."""

    def __init__(self, titles: Mapping[str, str]) -> None:
        self._titles, self._phase = titles, ""

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "executed":
            title = self._titles.get(data["node"], "a node")
            texts = [text for text in data["output"].get("text") or () if isinstance(text, str)]
            for text in filter(None, map(str.strip, texts[:TEXTS])):
                say(f"{title}: {text}")
            if len(texts) > TEXTS:
                say(f"{title}: and {len(texts) - TEXTS} more")
        if event != "in_graph_lora.progress":
            return
        for notice in data.get("notices", ()):
            say(notice)
        if data.get("phase") and data["phase"] != self._phase and not data.get("points"):
            self._phase = data["phase"]
            say(f"{self._phase} …")
        for step, loss, _ in data.get("points", ()):
            told = "not finite" if loss is None else f"{loss:.4f}"
            say(f"step {step}/{data['steps']}  loss {told}")
        for step in data.get("previews", ()):
            say(f"previews of step {step}")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Exit code: 0 done, 1 with a sentence on stderr, 130 after Ctrl-C or SIGTERM."""
    args = arguments(sys.argv[1:])
    print_anything()
    import_pack()
    from in_graph_lora.trainer.errors import TrainerError

    stop = Stop()
    try:
        return asyncio.run(train(args, stop))
    except TrainerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("left alone; the same command follows it again", file=sys.stderr)
        return INTERRUPTED


async def train(args: argparse.Namespace, stop: Stop) -> int:
    from in_graph_lora.trainer.remote.follow import CANCELLED, SUCCESS, Following, send_files
    from in_graph_lora.trainer.remote.work import prepared, read_workflow
    from in_graph_lora.trainer.remote.worker import Worker

    content = read_workflow(args.workflow)
    async with Worker(args.url, say, args.header, args.patience * 60) as worker:
        definitions = await worker.definitions("" if args.any_version else version())
        work = prepared(content, definitions, args.input)
        for note in work.notes:
            say(note)
        say(f"{len(work.uploads)} files; those that the worker lacks are sent")
        sent = await send_files(worker, work.uploads, lambda: stop.wished)
        say(f"{sent} were sent")
        if stop.wished:
            print("stopped before anything was trained; the same command goes on", file=sys.stderr)
            return INTERRUPTED
        titles = _titles(work, definitions)
        end = await Following(worker, work, Screen(titles), say, lambda: stop.wished).train()
        brought = await _bring(worker, end, args.output.resolve())
    if end.state == SUCCESS and brought:
        return 0
    if end.state == CANCELLED:
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    print(end.error or "the graph ran to its end, but trained no LoRA that could be fetched", file=sys.stderr)
    return 1


async def _bring(worker: Any, end: End, output: Path) -> int:
    """Of a training that failed too: its checkpoints are good. How many LoRAs there are."""
    from in_graph_lora.trainer.remote.fetch import fetch_run, put_lora
    from in_graph_lora.trainer.runs.placing import Places

    places, count = Places(loras=output / "loras", embeddings=output / "embeddings"), 0
    for run in end.runs:
        folder = await fetch_run(worker, run, output / "in-graph-lora")
        if folder is None:
            say(f"run {run} is no longer on the worker")
            continue
        if (lora := put_lora(folder, places)) is not None:
            say(f"LoRA: {lora}")
            count += 1
        say(f"Run: {folder.path}")
    return count


def _titles(work: Work, definitions: Mapping[str, Any]) -> dict[str, str]:
    kinds = {key: node["class_type"] for key, node in work.graph.items()}
    return {key: definitions[kind].get("display_name") or kind for key, kind in kinds.items()}


if __name__ == "__main__":
    sys.exit(main())
