"""EvaluateLoRA: is this LoRA good, which step and strength are best, and what did it cost the model?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..trainer.config import EDIT_NODES
from ..trainer.errors import ConfigError, StorageError
from ..trainer.host.paths import lora_path, output_image, run_path, runs
from ..trainer.host.progress import NodeProgress, files_changed
from ..trainer.host.sample import SampleSettings
from ..trainer.runs.checkpoints import loras
from ..trainer.runs.folder import RunFolder
from ..trainer.text import garbled, lines, readable
from .sampler_inputs import sampler_inputs
from .sockets import CATEGORY, LoraModel, TrainDataset

NO_RUN = "none"


class EvaluateLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EvaluateLoRA",
            display_name="Evaluate LoRA",
            category=CATEGORY,
            is_output_node=True,
            description="Is the subject learned, what did the model forget, which step and strength are best?"
            " Figures with intervals.",
            search_aliases=[
                "quality",
                "clip score",
                "dino",
                "kid",
                "fid",
                "overfitting",
                "best checkpoint",
                "evaluate lora",
                "test lora",
                "评估",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model without the LoRA."),
                io.Clip.Input("clip", tooltip="The text encoder without the LoRA."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    placeholder="aawxbc figurine on the beach",
                    tooltip="Prompts with the trigger, one a line.",
                ),
                io.String.Input(
                    "class_prompts",
                    default="",
                    multiline=True,
                    placeholder="a figurine on the beach",
                    tooltip="Prompts of the class without the trigger: does the subject leak into them?",
                ),
                io.String.Input(
                    "unrelated_prompts",
                    default="",
                    multiline=True,
                    placeholder="a mountain lake",
                    tooltip="Prompts of other things: has the model drifted?",
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
                io.Int.Input(
                    "images_per_prompt", default=4, min=1, max=1000, tooltip="Pictures of each prompt."
                ),
                *sampler_inputs(),
                LoraModel.Input("lora", optional=True, tooltip="A LoRA to evaluate, from Train LoRA."),
                io.Combo.Input(
                    "run",
                    options=[NO_RUN, *runs().names()],
                    default=NO_RUN,
                    optional=True,
                    tooltip="A run whose checkpoints are evaluated.",
                ),
                TrainDataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="What was trained on: to find copies, and for the loss of what was held out.",
                ),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Pictures of the subject that were not trained on. Else the held-out ones.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The judge: CLIP, SigLIP, DINOv2 or DINOv3 from Load CLIP Vision.",
                ),
                io.String.Input(
                    "strengths",
                    default="1",
                    advanced=True,
                    optional=True,
                    tooltip="Evaluated at each of these.",
                ),
                io.Int.Input(
                    "checkpoints",
                    default=4,
                    min=0,
                    max=1000,
                    advanced=True,
                    optional=True,
                    tooltip="How many of the run's, evenly spaced, the last among them. 0: all.",
                ),
                io.String.Input(
                    "lora_files",
                    default="",
                    multiline=True,
                    advanced=True,
                    optional=True,
                    tooltip="More LoRAs, one a line, as Load LoRA lists them.",
                ),
                io.Int.Input(
                    "held_out",
                    default=0,
                    min=0,
                    max=10000,
                    advanced=True,
                    optional=True,
                    tooltip="Held-out pictures of the dataset, as Train Preview was told. A run knows.",
                ),
                io.String.Input(
                    "judge_folder",
                    default="",
                    advanced=True,
                    optional=True,
                    tooltip="A transformers folder as the judge; CLIP and SigLIP judge the prompt too.",
                ),
                io.Float.Input(
                    "max_drift",
                    default=0.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    advanced=True,
                    optional=True,
                    tooltip="The best stays below. 1 is as far as one picture of the base is from another.",
                ),
                io.Float.Input(
                    "max_copies",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    optional=True,
                    tooltip="The best stays below: share of near copies of training pictures.",
                ),
                io.Int.Input(
                    "max_pictures",
                    default=500,
                    min=1,
                    max=1_000_000,
                    advanced=True,
                    optional=True,
                    tooltip="More than these are not drawn: the node says how many it would be.",
                ),
                io.Boolean.Input(
                    "fid",
                    default=False,
                    advanced=True,
                    optional=True,
                    tooltip="FID too; needs 2,000 pictures.",
                ),
                io.Boolean.Input(
                    "all_figures",
                    default=False,
                    advanced=True,
                    optional=True,
                    tooltip="Show also figures that did not follow the truth in our trial, and LPIPS.",
                ),
                io.Clip.Input(
                    "question_clip",
                    optional=True,
                    tooltip="A text encoder that sees (Qwen3-VL, Gemma 3, …): asked whether the pictures show"
                    " what the prompts say.",
                ),
                io.String.Input(
                    "questions",
                    default="",
                    multiline=True,
                    advanced=True,
                    optional=True,
                    placeholder="hat | is there a hat?",
                    tooltip="One a line; with `word |` only of prompts with that word. Empty: of each part of"
                    " the prompt.",
                ),
                io.String.Input(
                    "classifier_folder",
                    default="",
                    advanced=True,
                    optional=True,
                    tooltip="A transformers image classifier, for the inception score (IS); needs 2,000"
                    " pictures.",
                ),
                io.ClipVision.Input(
                    "start_clip_vision",
                    optional=True,
                    tooltip="As clip_vision of Train LoRA, for the held-out loss of image-to-video models.",
                ),
                io.Combo.Input(
                    "edit_node",
                    options=list(EDIT_NODES),
                    default=EDIT_NODES[0],
                    advanced=True,
                    optional=True,
                    tooltip="As on Train LoRA, for the held-out loss of edit models. A run or file knows.",
                ),
            ],
            outputs=[
                LoraModel.Output(display_name="best_lora", tooltip="Of the best step."),
                io.Float.Output(display_name="best_strength", tooltip="For Apply LoRA."),
                io.Image.Output(display_name="grid", tooltip="Some pictures of each candidate, labelled."),
                io.String.Output(display_name="report", tooltip="Figures and warnings (Markdown)."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, run: str | None = NO_RUN, lora_files: str | None = "", **_: object) -> str:
        """A run that has gone on, or a file that was written anew, is another input."""
        try:
            folder = _run_folder(run)
            files = [lora_path(name) for name in lines(lora_files or "")]
            found = [*files, *(loras(folder.checkpoints).values() if folder is not None else ())]
            return str([(str(path), path.stat().st_mtime_ns) for path in found])
        except (StorageError, OSError, ConfigError):
            return f"{run} {lora_files}"

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        prompts: str,
        class_prompts: str,
        unrelated_prompts: str,
        negative: str,
        seed: int,
        images_per_prompt: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        lora: dict[str, Any] | None = None,
        run: str = NO_RUN,
        dataset: Any = None,
        references: torch.Tensor | None = None,
        clip_vision: Any = None,
        strengths: str = "1",
        checkpoints: int = 4,
        lora_files: str = "",
        held_out: int = 0,
        judge_folder: str = "",
        max_drift: float = 0.5,
        max_copies: float = 0.25,
        max_pictures: int = 500,
        fid: bool = False,
        all_figures: bool = False,
        question_clip: Any = None,
        questions: str = "",
        classifier_folder: str = "",
        start_clip_vision: Any = None,
        edit_node: str = EDIT_NODES[0],
    ) -> io.NodeOutput:
        from ..trainer.evidence.choice import Bounds
        from ..trainer.evidence.questions import parse
        from ..trainer.evidence.shots import Kind, shots
        from ..trainer.host.answers import ClipAnswerer
        from ..trainer.host.evidence import Question, evaluate
        from ..trainer.host.evidence_files import chosen_loras, trained_with, write
        from ..trainer.host.judges import FolderClassifier, judge_of
        from ..trainer.pictures.comparison import parse_strengths
        from ..trainer.pictures.drawing import to_pil

        told: dict[Kind, str] = {"trigger": prompts, "class": class_prompts, "unrelated": unrelated_prompts}
        odd = garbled([*((f"{kind} prompts", text) for kind, text in told.items()), ("negative", negative)])
        folder = _run_folder(run)
        question = Question(
            shots=shots(
                {kind: lines(readable(text)) for kind, text in told.items()}, seed, images_per_prompt
            ),
            negative=readable(negative),
            sampling=SampleSettings(
                steps=steps,
                cfg=cfg,
                sampler_name=sampler_name,
                scheduler=scheduler,
                width=width,
                height=height,
            ),
            loras=chosen_loras(lora, folder, checkpoints, lines(lora_files)),
            strengths=parse_strengths(strengths),
            dataset=dataset,
            trained=trained_with(folder, lines(lora_files), held_out, edit_node),
            start_vision=start_clip_vision,
            references=[to_pil(image[None]) for image in references] if references is not None else [],
            bounds=Bounds(drift=max_drift, copies=max_copies),
            most=max_pictures,
            fid=fid,
            all_figures=all_figures,
            trigger=dataset.trigger if dataset is not None else "",
            asked=parse(lines(readable(questions))),
        )
        judge = judge_of(clip_vision, _folder(judge_folder))
        classes = _folder(classifier_folder)
        result = evaluate(
            *(model, clip, vae, judge, question, NodeProgress(cls.hidden.unique_id)),
            answerer=ClipAnswerer(question_clip) if question_clip is not None else None,
            classifier=FolderClassifier(classes) if classes is not None else None,
        )
        text, grid, picture = write(result, folder)
        files_changed()  # Compare Reports lists it
        return io.NodeOutput(
            dict(result.best.load()),
            result.best_strength,
            grid,
            text,
            ui={"text": [odd, text] if odd else [text], "images": [output_image(picture)]},
        )


def _folder(written: str) -> Path | None:
    return Path(written.strip()) if written.strip() else None


def _run_folder(run: str | None) -> RunFolder | None:
    return None if run is None or run in ("", NO_RUN) else RunFolder(run_path(run))
