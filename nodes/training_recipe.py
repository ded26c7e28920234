"""TrainingRecipe: all settings of Train LoRA from a recipe, or from another trainer's config."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..trainer.config import TrainConfig
from ..trainer.errors import ConfigError
from ..trainer.host import paths
from ..trainer.recipes import recipe as recipes
from ..trainer.text import lines
from .sockets import (
    CATEGORY,
    Adapter,
    MadeFor,
    Memory,
    Objective,
    Optimizer,
    OptimizerOptions,
    Preview,
    PreviewOptions,
    Regularization,
)
from .sockets import Framing as FramingSocket

if TYPE_CHECKING:
    from ..trainer.recipes.settings import Settings

FROM_CONFIG = "[from config]"


class TrainingRecipe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = recipes.names()
        return io.Schema(
            node_id="TrainingRecipe",
            display_name="Training Recipe",
            category=CATEGORY,
            description="All settings of Train LoRA from a recipe with its source, or from a config of kohya,"
            " OneTrainer, ai-toolkit, SimpleTuner or diffusers.",
            search_aliases=[
                "preset",
                "kohya",
                "onetrainer",
                "ai-toolkit",
                "simpletuner",
                "import config",
                "配方",
            ],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "recipe",
                    options=[*names, FROM_CONFIG],
                    default="sd15",
                    tooltip="What to train by. [from config]: what stands in config.",
                ),
                io.String.Input(
                    "config",
                    default="",
                    multiline=True,
                    tooltip="With [from config]: the text of another trainer's config or its command line,"
                    " or the name of such a file or of a LoRA in ComfyUI's input folder. Files that it"
                    " names are not opened.",
                ),
                io.String.Input(
                    "class_prompt",
                    default="",
                    tooltip="For prior preservation: the class without the trigger, as a photo of a dog."
                    " Empty: that of the config, if there is one.",
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="Sample pictures while it trains, one prompt a line. Empty: those of the config,"
                    " if there are any.",
                ),
            ],
            outputs=[
                Adapter.Output(display_name="adapter", tooltip="For Train LoRA."),
                Objective.Output(display_name="objective", tooltip="For Train LoRA."),
                Optimizer.Output(
                    display_name="optimizer",
                    tooltip="For Train LoRA: the schedule, and epochs if there are any.",
                ),
                Memory.Output(display_name="memory", tooltip="For Train LoRA."),
                Preview.Output(display_name="preview", tooltip="For Train LoRA."),
                Regularization.Output(display_name="regularization", tooltip="For Train LoRA."),
                io.Int.Output(
                    display_name="steps", tooltip="For Train LoRA. Not used where there are epochs."
                ),
                io.Float.Output(display_name="learning_rate", tooltip="For Train LoRA."),
                io.Int.Output(display_name="rank", tooltip="For Train LoRA."),
                io.Float.Output(display_name="alpha", tooltip="For Train LoRA."),
                io.Int.Output(display_name="batch_size", tooltip="For Train LoRA."),
                io.Int.Output(display_name="train_seed", tooltip="For Train LoRA."),
                io.Int.Output(display_name="resolution", tooltip="For Load Dataset."),
                FramingSocket.Output(display_name="framing", tooltip="For Load Dataset: crops and mirrors."),
                io.String.Output(
                    display_name="report", tooltip="Markdown: what is set, why, and what has no counterpart."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, recipe: str | None = None, config: str | None = None) -> bool | str:
        """In place of ComfyUI's check of the list, which does not say what to do."""
        if recipe is not None and recipe not in (*recipes.names(), FROM_CONFIG):
            return f"there is no recipe {recipe[:80]!r}; choose one of the list"
        if recipe == FROM_CONFIG and config is not None and not config.strip():
            return "config is empty; paste a config into it, or choose a recipe"
        if recipe not in (None, FROM_CONFIG) and (config or "").strip():
            return f"config is filled in, and recipe is {recipe!r}; choose [from config], or empty config"
        return True

    @classmethod
    def fingerprint_inputs(cls, recipe: str | None = None, config: str | None = None, **_: object) -> str:
        """A file that has changed is another input."""
        from ..trainer.recipes.source_text import names_a_file

        name = (config or "").strip() if recipe == FROM_CONFIG else f"{recipe}.json"
        folder = paths.input_directory() if recipe == FROM_CONFIG else recipes.FOLDER
        if not name or not names_a_file(name):
            return ""
        try:
            found = (folder / name).stat()
        except (OSError, ValueError):
            return ""
        return f"{found.st_mtime_ns} {found.st_size}"

    @classmethod
    def execute(cls, recipe: str, config: str, class_prompt: str, prompts: str) -> io.NodeOutput:
        if recipe == FROM_CONFIG:
            settings, made_for, report = _from_config(config)
            shown = {"text": [report]}
        else:
            chosen = recipes.load(recipe)
            settings, made_for = chosen.settings, MadeFor(chosen.name, chosen.families)
            report = chosen.report("en")
            shown = {"text": [report], "zh": [chosen.report("zh")]}
        c = _with_texts(settings.config, class_prompt, prompts)
        preview = PreviewOptions(preview=c.preview, validation=c.validation, save=c.save)
        return io.NodeOutput(
            c.adapter,
            c.objective,
            OptimizerOptions(optimizer=c.optimizer, epochs=c.epochs, made_for=made_for),
            c.memory,
            preview,
            c.prior,
            c.steps,
            c.optimizer.learning_rate,
            c.adapter.rank,
            c.adapter.alpha,
            c.data.batch_size,
            c.seed,
            c.data.resolution,
            settings.framing,
            report,
            ui=shown,
        )


def _from_config(text: str) -> tuple[Settings, MadeFor, str]:
    from ..trainer.recipes import foreign, source_text

    if not text.strip():
        raise ConfigError("config is empty; paste a config into it, or choose a recipe")
    named = source_text.names_a_file(text)
    source = source_text.read_file(text, paths.input_directory()) if named else source_text.read_text(text)
    found = foreign.read(source)
    return (
        foreign.usable(found),
        MadeFor(f"config of {found.tool.title}", found.families),
        foreign.report(found),
    )


def _with_texts(config: TrainConfig, class_prompt: str, prompts: str) -> TrainConfig:
    """The prompts that only the user knows, in place of those of a config."""
    changed: dict[str, Any] = {}
    if class_prompt.strip():
        changed["prior"] = replace(config.prior, class_prompt=class_prompt.strip())
    if shown := tuple(lines(prompts)):
        changed["preview"] = replace(config.preview, prompts=shown)
    return replace(config, **changed)
