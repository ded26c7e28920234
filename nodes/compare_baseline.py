"""CompareBaseline: same prompts, same seeds, with and without the LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..trainer.config import EDIT_NODES
from ..trainer.errors import ConfigError
from ..trainer.host.progress import NodeProgress
from ..trainer.host.sample import SampleSettings
from ..trainer.pictures.comparison import Row, comparison_grid, parse_strengths, report
from ..trainer.text import garbled, lines, readable
from .sampler_inputs import sampler_inputs
from .sockets import CATEGORY, LoraModel
from .training_inputs import clip_vision_input, edit_node_input


class CompareBaseline(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CompareBaseline",
            display_name="Compare Baseline",
            category=CATEGORY,
            description="Samples each prompt with and without the LoRA, same seeds, side by side.",
            search_aliases=["before after", "xy plot", "lora strength", "compare", "compare lora", "对比"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model without the LoRA."),
                io.Clip.Input("clip", tooltip="The text encoder without the LoRA."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                LoraModel.Input("lora", tooltip="The LoRA to judge, from Train LoRA."),
                io.String.Input(
                    "prompts",
                    default="a photo",
                    multiline=True,
                    tooltip="One prompt a line. Each gets a row.",
                ),
                io.String.Input(
                    "negative", default="", tooltip="Negative prompt, the same for every picture."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the first picture of each prompt; the next ones count up.",
                ),
                io.Int.Input("images_per_prompt", default=1, min=1, max=64, tooltip="Rows for each prompt."),
                *sampler_inputs(),
                io.String.Input(
                    "strengths",
                    default="0, 1",
                    advanced=True,
                    tooltip="One column for each. 0 is the untouched model and always comes first.",
                ),
                io.Image.Input(
                    "control",
                    optional=True,
                    tooltip="Control pictures for an edit model, or start pictures for a video model: one for"
                    " all prompts, or a batch with one for each.",
                ),
                io.Int.Input(
                    "frames",
                    default=1,
                    min=1,
                    max=1025,
                    optional=True,
                    advanced=True,
                    tooltip="Of a video model: the first, the middle and the last frame are shown side by"
                    " side. 1: a still picture.",
                ),
                clip_vision_input(),
                edit_node_input(),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="All pictures, labelled."),
                io.Image.Output(display_name="baseline", tooltip="The pictures without the LoRA."),
                io.Image.Output(display_name="trained", tooltip="The pictures at the last strength."),
                io.String.Output(
                    display_name="report", tooltip="How far the LoRA moves each picture (Markdown)."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        lora: dict[str, Any],
        prompts: str,
        negative: str,
        seed: int,
        images_per_prompt: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        strengths: str,
        control: Any = None,
        frames: int = 1,
        clip_vision: Any = None,
        edit_node: str = EDIT_NODES[0],
    ) -> io.NodeOutput:
        from ..trainer.host.compare import prompt_controls, sample_rows
        from ..trainer.host.references import Choices

        columns = parse_strengths(strengths)
        prompts, negative = readable(prompts), readable(negative)
        odd = garbled([("prompts", prompts), ("negative", negative)])
        asked = lines(prompts)
        if not asked:
            raise ConfigError("prompts is empty; write at least one line")
        settings = SampleSettings(
            steps=steps,
            cfg=cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            width=width,
            height=height,
            frames=frames,
        )
        shots = [(line, (seed + i) % 2**64) for line in asked for i in range(images_per_prompt)]
        choices = Choices(edit_node=edit_node, vision=clip_vision)
        shown = prompt_controls(model, clip, vae, asked, control, settings, choices)
        controls = [c for c in shown for _ in range(images_per_prompt)]
        rows = sample_rows(
            *(model, clip, vae, lora, negative, shots, columns, settings),
            on_step=NodeProgress(cls.hidden.unique_id).update,
            controls=controls,
        )
        length = f", {frames} frames" if frames > 1 else ""
        sampled = f"{sampler_name}, {scheduler}, {steps} steps, cfg {cfg:g}, {width}×{height}{length}."
        text = report(rows, columns, sampled)
        return io.NodeOutput(
            comparison_grid(rows, columns),
            torch.cat([row.images[0] for row in rows]),
            torch.cat([row.images[-1] for row in rows]),
            text,
            ui={"text": [odd, text] if odd else [text], "comparison": cls._shown(rows, columns)},
        )

    @classmethod
    def _shown(cls, rows: Sequence[Row], columns: Sequence[float]) -> list[dict[str, Any]]:
        """Each picture, row by row, in ComfyUI's temp folder: {prompt, seed, strength} and where it is.

        Not `images`: these ComfyUI would draw on the node by itself, below our view of the same.
        """
        about = [(row, strength) for row in rows for strength in columns]
        pictures = ui.PreviewImage(torch.cat([image for row in rows for image in row.images]), cls=cls).values
        return [
            {"prompt": row.prompt, "seed": str(row.seed), "strength": strength, **picture}
            for (row, strength), picture in zip(about, pictures, strict=True)
        ]
