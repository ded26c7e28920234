"""Train a LoRA from a Python script: the same engine as on the canvas, without ComfyUI's server.

    python scripts/train.py --comfyui ~/ComfyUI --checkpoint sd15.safetensors --pictures my_pictures

Results are the same files in the same places, below --output. Run it again and it goes on where it was, or
loads what is finished. docs/python.md says more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _pack import import_pack


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a LoRA on a checkpoint that ComfyUI can load.")
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder, with main.py in it")
    parser.add_argument("--checkpoint", type=Path, required=True, help="model, CLIP and VAE in one file")
    parser.add_argument("--pictures", type=Path, required=True, help="pictures with .txt files beside them")
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--name", default="my_lora")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--cpu", action="store_true", help="train without a GPU")
    return parser.parse_args()


def main() -> None:
    args = arguments()
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
