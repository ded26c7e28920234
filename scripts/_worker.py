"""A process of train_queue.py: trains one job, or draws the evidence of a sweep, and says how far it is.

It speaks in lines of JSON that begin with `MARK`, and stops and keeps the work when its standard input ends:
when the queue says so, and also when the queue was killed.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = "in-graph-lora: "
AGAIN = 5.0
"""Seconds until a stop that nothing heeded is asked for again."""


def main() -> None:
    import _comfyui
    from _job import INTERRUPTED, run_graph, run_job
    from _pack import import_pack, print_anything

    end = sys.argv.index("--")
    what, path, comfyui = sys.argv[1:end]
    options: Sequence[str] = sys.argv[end + 1 :]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a queue in the background ignores it
    threading.Thread(target=stop_with_stdin, daemon=True).start()
    print_anything()
    import_pack()
    from in_graph_lora.trainer.errors import JobError
    from in_graph_lora.trainer.files import read_json

    code = 0
    try:
        if what == "job":
            run_job(Path(path), Path(comfyui), options, tell)
        else:
            content = read_json(Path(path))
            run_graph(content["graph"], content["node"], Path(comfyui), options, tell)
    except (JobError, _comfyui.GraphError) as error:
        say(error=str(error))
        code = 1
    except (_comfyui.Interrupted, KeyboardInterrupt):
        code = INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # ComfyUI's thread may be within torch, which an ordinary exit tears away


def stop_with_stdin() -> None:
    sys.stdin.buffer.read()
    while True:
        _thread.interrupt_main(signal.SIGINT)
        time.sleep(AGAIN)


def tell(event: str, data: Mapping[str, Any]) -> None:
    """Of what nodes tell the page: steps, the LoRA, and where the evidence is."""
    if event == "in_graph_lora.progress":
        say(step=data.get("step", 0), steps=data.get("steps", 0), loss=data.get("loss"))
    output = data.get("output") if event == "executed" else None
    for run in (output or {}).get("run", ()):
        say(lora=run["lora_path"], run=run["run_dir"])
    for picture in (output or {}).get("images", ()):
        if picture.get("type") == "output":
            import folder_paths  # pyright: ignore[reportMissingImports]

            say(folder=os.path.join(folder_paths.get_output_directory(), picture.get("subfolder", "")))


def say(**what: Any) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(what)}\n")  # in one piece: other threads print too
    sys.stdout.flush()


if __name__ == "__main__":
    main()
