"""LoadRun: any checkpoint of a run as the result."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..trainer.errors import StorageError
from ..trainer.host.paths import output_image, runs
from ..trainer.runs.checkpoints import loras
from ..trainer.runs.evaluated import best_evaluated
from .sockets import CATEGORY, LoraModel, LossMap


class LoadRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadRun",
            display_name="Load Run",
            category=CATEGORY,
            description="The LoRA of any step of an earlier training, with its losses.",
            search_aliases=[
                "checkpoint",
                "resume",
                "training history",
                "epoch",
                "load training",
                "training runs",
            ],
            inputs=[
                io.Combo.Input(
                    "run",
                    options=runs().names(),
                    tooltip="Name and start of the run; the newest comes first.",
                ),
                io.Int.Input(
                    "step",
                    default=0,
                    min=-1,
                    max=1_000_000,
                    tooltip="The checkpoint's step. 0: the newest. -1: the best by Evaluate LoRA, or else as"
                    " Train Preview decided.",
                ),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For Apply LoRA and Compare Baseline."),
                LossMap.Output(display_name="loss", tooltip="The loss of each step up to this one."),
                io.String.Output(display_name="metadata", tooltip="The file's metadata (JSON)."),
                io.Int.Output(display_name="step", tooltip="The step that was loaded."),
                io.String.Output(display_name="path", tooltip="The LoRA file of this step, as a full path."),
            ],
        )

    @classmethod
    def validate_inputs(cls, run: str | None = None) -> bool | str:
        """In place of ComfyUI's check of the list, which does not say what to do."""
        if run is None or run in runs().names():
            return True
        return f"there is no run {run[:80]!r} with a LoRA; choose one of the list, or train"

    @classmethod
    def fingerprint_inputs(cls, run: str, step: int) -> str:
        """A run that has gone on is another input."""
        try:
            folder = runs().folder(run)
        except StorageError:
            return run
        there = list(loras(folder.checkpoints))
        return f"{run} {step} {there} {folder.config().get('validation')} {best_evaluated(folder, there)}"

    @classmethod
    def execute(cls, run: str, step: int) -> io.NodeOutput:
        from ..trainer.runs.past import load_past_run

        folder = runs().folder(run)
        past = load_past_run(folder, step)
        ui: dict[str, list] = {"text": [past.summary]}
        if folder.overview is not None:
            ui["images"] = [output_image(folder.overview)]
        metadata = json.dumps(past.metadata, indent=2, ensure_ascii=False)
        return io.NodeOutput(past.lora, {"loss": past.losses}, metadata, past.step, str(past.path), ui=ui)
