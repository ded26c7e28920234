"""Train a LoRA without ComfyUI's server: the same engine as on the canvas.

    python scripts/train.py output/in-graph-lora/jobs/my_lora
    python scripts/train.py --comfyui ~/ComfyUI --checkpoint sd15.safetensors --pictures my_pictures

The first trains a job that Train LoRA has written, or a run's folder, in the ComfyUI that has this pack; what
follows `--` are ComfyUI's own options. The second shows how a script of yours trains.

Results are the same files in the same places, below --output. Run it again and it goes on where it was, or
loads what is finished. docs/python.md says more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import _processes
from _job import train_job
from _pack import import_pack, print_anything


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a job, or on a checkpoint that ComfyUI can load.")
    parser.add_argument("job", type=Path, nargs="?", help="folder of a job or of a run")
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder; default: the one around this pack")
    parser.add_argument("--checkpoint", type=Path, help="model, CLIP and VAE in one file")
    parser.add_argument("--pictures", type=Path, help="pictures with .txt files beside them")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--name", default="my_lora")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--cpu", action="store_true", help="train without a GPU")
    args = parser.parse_args(given)
    if not args.job and not (args.comfyui and args.checkpoint and args.pictures):
        parser.error("give a job's folder, or --comfyui, --checkpoint and --pictures")
    if not args.job and _processes.started() > 1:
        parser.error("several processes train a job together; write one with Train LoRA, where = job")
    return args


def main() -> None:
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = arguments(sys.argv[1:end]), sys.argv[end + 1 :]
    print_anything()
    if args.job:
        import_pack()
        code = train_job(args.job.resolve(), args.comfyui, [*options, *["--cpu"][: args.cpu]])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # ComfyUI's thread may be within torch, which an ordinary exit tears away
    # ComfyUI reads its options when it is first imported. The script's own folder must not be searched.
    sys.path[0] = str(args.comfyui.resolve())
    from comfy.cli_args import args as options

    options.cpu = args.cpu
    import_pack()
    train(args)


def train(args: argparse.Namespace) -> None:
    import comfy.sd
    import folder_paths

    from in_graph_lora.trainer import config, events
    from in_graph_lora.trainer.data.scan import scan_folder
    from in_graph_lora.trainer.host.training import train_on_loaded

    folder_paths.set_output_directory(str(args.output.resolve()))
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(args.checkpoint))
    dataset = scan_folder(args.pictures, resolution=args.resolution)
    for problem in dataset.problems:
        print(f"skipped {problem}")

    def on_event(event: events.Event) -> None:
        """Called for everything that happens. What it raises ends the run; a checkpoint is written first."""
        if isinstance(event, events.StepDone):
            print(
                f"step {event.step}/{event.steps}  loss {event.loss:.4f}  {event.seconds:.2f} s", flush=True
            )
        elif isinstance(event, events.Notice):
            print(event.message, flush=True)

    wishes = config.TrainConfig(
        name=args.name,
        steps=args.steps,
        adapter=config.AdapterConfig(rank=args.rank),
        optimizer=config.OptimizerConfig(learning_rate=args.learning_rate),
        data=config.DataConfig(resolution=args.resolution),
    )
    result = train_on_loaded(model, clip, vae, dataset, wishes, on_event)
    print(f"LoRA: {result.path}")
    print(f"Run: {result.run}")


if __name__ == "__main__":
    main()
