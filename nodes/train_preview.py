"""TrainPreview: what is shown and measured while a run goes on, and how often it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer.config import DECIDES, PreviewConfig, SaveConfig, ValidationConfig
from ..trainer.host.sample import SAMPLERS, SCHEDULERS
from ..trainer.text import lines
from .sockets import CATEGORY, Preview, PreviewOptions

_P, _V, _S = PreviewConfig(), ValidationConfig(), SaveConfig()


class TrainPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainPreview",
            display_name="Train Preview",
            category=CATEGORY,
            description="Sample pictures and a held-out loss while the training goes on, and checkpoints.",
            search_aliases=[
                "sample prompts",
                "validation",
                "early stopping",
                "checkpoint",
                "预览",
                "training preview",
                "训练预览",
            ],
            inputs=[
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="One prompt a line, each sampled every few steps with its own fixed seed."
                    " Empty: no pictures.",
                ),
                io.Int.Input(
                    "every",
                    default=_P.every,
                    min=1,
                    max=1_000_000,
                    tooltip="Steps between pictures. The untouched model and the last step are always shown.",
                ),
                io.Int.Input(
                    "held_out",
                    default=_V.held_out,
                    min=0,
                    max=10_000,
                    tooltip="Pictures that are kept out of training, to measure the loss on. 0: none."
                    " One in ten is usual.",
                ),
                io.Int.Input(
                    "measure_every",
                    default=_V.every,
                    min=1,
                    max=1_000_000,
                    tooltip="Steps between measurements of the held-out loss.",
                ),
                io.Boolean.Input(
                    "keep_best",
                    default=_V.keep_best,
                    tooltip="The result is the LoRA of the best step: decides says what that is.",
                ),
                io.Int.Input(
                    "patience",
                    default=_V.patience,
                    min=0,
                    max=10_000,
                    advanced=True,
                    tooltip="Stop after this many measurements without a new best. 0: never.",
                ),
                io.String.Input("negative", default="", advanced=True, tooltip="Negative prompt."),
                io.Int.Input(
                    "seed",
                    default=_P.seed,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    advanced=True,
                    tooltip="Seed of the first prompt; the next ones count up.",
                ),
                io.Int.Input(
                    "sampling_steps",
                    default=_P.steps,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="As in KSampler.",
                ),
                io.Float.Input(
                    "cfg",
                    default=_P.cfg,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Guidance scale.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=SAMPLERS,
                    default=_P.sampler_name,
                    advanced=True,
                    tooltip="As in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=SCHEDULERS,
                    default=_P.scheduler,
                    advanced=True,
                    tooltip="As in KSampler.",
                ),
                io.Int.Input(
                    "width",
                    default=_P.width,
                    min=0,
                    max=8192,
                    step=8,
                    advanced=True,
                    tooltip="Pixels; 0 is the resolution of the dataset.",
                ),
                io.Int.Input(
                    "height",
                    default=_P.height,
                    min=0,
                    max=8192,
                    step=8,
                    advanced=True,
                    tooltip="Pixels; 0 is the resolution of the dataset.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=_S.every,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="Steps between checkpoints. 0: only when a run ends, stops or draws a preview.",
                ),
                io.Int.Input(
                    "keep_states",
                    default=_S.keep,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="How many states to go on from are kept.",
                ),
                io.Int.Input(
                    "frames",
                    default=_P.frames,
                    min=1,
                    max=1025,
                    optional=True,
                    advanced=True,
                    tooltip="Of a video model: the first, the middle and the last frame are shown side by"
                    " side. 1: a still picture.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="A judge of the pictures: CLIP, SigLIP, DINOv2 or DINOv3 from Load CLIP Vision.",
                ),
                io.String.Input(
                    "judge_folder",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="A transformers folder as the judge instead.",
                ),
                io.Combo.Input(
                    "decides",
                    options=list(DECIDES),
                    default=DECIDES[0],
                    optional=True,
                    tooltip="What keep_best and patience go by. judge: as in Evaluate LoRA, the pictures most"
                    " like the held-out ones, within max_drift and max_copies.",
                ),
                io.String.Input(
                    "unrelated_prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    placeholder="a mountain lake",
                    tooltip="Drawn too, two lines or more: other things than the subject, by which the judge"
                    " measures the drift.",
                ),
                io.Float.Input(
                    "max_drift",
                    default=_V.max_drift,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="By the judge the best stays below. 1 is as far as one picture of the base is"
                    " from another.",
                ),
                io.Float.Input(
                    "max_copies",
                    default=_V.max_copies,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="By the judge the best stays below: share of near copies of training pictures.",
                ),
                io.Int.Input(
                    "keep_checkpoints",
                    default=_S.keep_checkpoints,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    advanced=True,
                    tooltip="LoRAs of how many checkpoints are kept: the newest ones, and the best. 0: all.",
                ),
                io.Int.Input(
                    "keep_every",
                    default=_S.keep_every,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    advanced=True,
                    tooltip="With keep_checkpoints: LoRAs of steps that this divides are kept too. 0: no"
                    " others.",
                ),
            ],
            outputs=[Preview.Output(display_name="preview", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(
        cls,
        prompts: str,
        every: int,
        held_out: int,
        measure_every: int,
        keep_best: bool,
        patience: int,
        sampling_steps: int,
        checkpoint_every: int,
        keep_states: int,
        clip_vision: Any = None,
        judge_folder: str = "",
        decides: str = _V.decides,
        unrelated_prompts: str = "",
        max_drift: float = _V.max_drift,
        max_copies: float = _V.max_copies,
        keep_checkpoints: int = _S.keep_checkpoints,
        keep_every: int = _S.keep_every,
        **sampling: Any,
    ) -> io.NodeOutput:
        from ..trainer.host.judges import judge_of

        judge = judge_of(clip_vision, Path(judge_folder.strip()) if judge_folder.strip() else None)
        options = PreviewOptions(
            preview=PreviewConfig(
                prompts=tuple(lines(prompts)),
                unrelated_prompts=tuple(lines(unrelated_prompts)),
                every=every,
                steps=sampling_steps,
                **sampling,
            ),
            validation=ValidationConfig(
                held_out=held_out,
                every=measure_every,
                keep_best=keep_best,
                patience=patience,
                decides=decides,
                judge=f"{judge.name} {judge.digest}" if judge is not None else "",
                max_drift=max_drift,
                max_copies=max_copies,
            ),
            save=SaveConfig(
                every=checkpoint_every,
                keep=keep_states,
                keep_checkpoints=keep_checkpoints,
                keep_every=keep_every,
            ),
            judge=judge,
        )
        return io.NodeOutput(options)
