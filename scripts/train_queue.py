"""Train all jobs of a folder, one after the other; with several GPUs one on each.

    python scripts/train_queue.py output/in-graph-lora/jobs
    python scripts/train_queue.py my_jobs --comfyui ~/ComfyUI --devices 0,1 -- --output-directory results

What follows `--` are ComfyUI's own options. Finished jobs are left out, a job that fails does not keep the
others from being trained, and after Ctrl-C, a crash or a reboot the same command goes on where it was. Lists
of values in a job make a sweep. The folder gets queue.json and queue.md, each job's folder train.log.
docs/python.md says more.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import _comfyui
from _job import INTERRUPTED, PACK
from _pack import import_pack, print_anything


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="holds a folder for each job")
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder; default: the one around this pack")
    parser.add_argument("--devices", help="numbers of GPUs, as 0,1; default: all that torch sees")
    parser.add_argument("--cpu", action="store_true", help="train without a GPU")
    parser.add_argument(
        "--prompt", action="append", default=[], help="for the evidence of sweeps; default: Train Preview's"
    )
    return parser.parse_args(given)


def main() -> int:
    """Exit code: 0 all is finished, 1 something is not, 130 after Ctrl-C."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = arguments(sys.argv[1:end]), sys.argv[end + 1 :]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    print_anything()
    import_pack()
    from _workers import Workers, devices

    from in_graph_lora.trainer.errors import TrainerError
    from in_graph_lora.trainer.job_queue import JobQueue

    options = [*options, *["--cpu"][: args.cpu]]
    folder = args.folder.resolve()
    try:
        comfyui = _comfyui.folder(args.comfyui, PACK)
        with JobQueue.lock(folder):
            queue = JobQueue(folder)
            if not queue.entries:
                print(f"{folder} has no job; write one with Train LoRA, where = job", file=sys.stderr)
                return 1
            workers = Workers(queue, comfyui, options, devices(args.devices, options), args.prompt)
            stopped = workers.run()
    except (TrainerError, _comfyui.GraphError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Summary: {folder / 'queue.md'}")
    if stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0 if queue.succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
