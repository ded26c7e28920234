"""TrainLoRA: trains on the model that is loaded, and saves the LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..trainer.errors import ConfigError
from ..trainer.host.active import active, nothing_yet, pause, paused, record_stop, stops
from ..trainer.host.progress import prompt_id, telling_of_files
from .canvas import Place
from .reporting import Reporter
from .sockets import CATEGORY, LoraModel, LossMap
from .training_inputs import (
    CONTINUE,
    HERE,
    JOB,
    NEW_RUN,
    name_error,
    tell_of_recipe,
    train_config,
    training_inputs,
)
from .training_report import reported

if TYPE_CHECKING:
    from ..trainer.data.records import Dataset


class TrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainLoRA",
            display_name="Train LoRA (In-Graph)",
            category=CATEGORY,
            description="Trains a LoRA on the model that is already loaded and saves it to output/loras.",
            search_aliases=[
                "train lora",
                "lora training",
                "lora",
                "train",
                "finetune",
                "dreambooth",
                "训练",
                "train model",
                "训练模型",
            ],
            is_output_node=True,
            inputs=training_inputs(),
            outputs=[
                LoraModel.Output(
                    display_name="lora", tooltip="The trained LoRA, for Apply LoRA and Compare Baseline."
                ),
                io.String.Output(display_name="lora_path", tooltip="The file's name, as Load LoRA lists it."),
                LossMap.Output(display_name="loss", tooltip="The loss of each step, for Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return name_error(name) or True

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **_: object) -> int:
        """A stopped run is no result to keep: the same graph goes on with it."""
        return stops(name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Dataset,
        existing_run: str = CONTINUE,
        where: str = HERE,
        clip_vision: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..trainer.host.jobs import Origin
        from ..trainer.host.training import job_on_loaded, train_on_loaded

        config = train_config(dataset, **settings)
        origin = Origin.of(cls.hidden.prompt, cls.hidden.unique_id, cls.hidden.extra_pnginfo)
        if where == JOB:
            if origin is None:
                raise ConfigError(
                    "this Train LoRA was made by another node, so its graph cannot be written; set where to"
                    " here"
                )
            emit = Reporter(cls.hidden.unique_id)
            job = job_on_loaded(model, clip, vae, dataset, config, emit, origin, clip_vision=clip_vision)
            told = f"{job} is written; train it by: python scripts/train.py {job.parent}"
            later = (nothing_yet(),) * 3
            return io.NodeOutput(*later, ui=ui.PreviewText("\n\n".join([told, *emit.notices])))
        preview = settings.get("preview")
        place = Place.of(cls.hidden.unique_id, cls.hidden.extra_pnginfo)
        with (
            telling_of_files(),
            active(cls.hidden.unique_id, prompt_id()) as training,
            reported(place, training, config, dataset) as report,
        ):
            tell_of_recipe(model, settings.get("optimizer"), report)
            result = train_on_loaded(
                model,
                clip,
                vae,
                dataset,
                config,
                report,
                new_run=existing_run == NEW_RUN,
                stop_requested=training.stop_requested,
                origin=origin,
                judge=preview.judge if preview is not None else None,
                clip_vision=clip_vision,
            )
            report.reached(result.run, len(result.losses))
            was_paused = paused(result.run) is not None
            pauses = result.stopped and training.wish == "pause" and not was_paused
            report.end("paused" if pauses or was_paused else "stopped" if result.stopped else "finished")
        if pauses:
            pause(result)
        if result.stopped and not was_paused:
            record_stop(config.name)
        shown = {
            "lora_path": str(result.path),
            "run_dir": str(result.run),
            "loss_curve": str(result.loss_curve),
            "previews": str(result.previews or ""),
            "plan": report.plan,
            "notices": report.notices,
        }
        outputs = (result.lora, result.path.name, {"loss": result.losses})
        if pauses:  # the nodes behind do not run now; with the next Run they get the LoRA so far
            outputs = (nothing_yet(),) * len(outputs)
        return io.NodeOutput(*outputs, ui={"run": [shown]})
