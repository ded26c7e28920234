"""TrainLoRA: trains on the model that is loaded, and saves the LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..trainer.host.active import active, record_stop, stops
from ..trainer.host.paths import output_image
from ..trainer.host.progress import files_changed
from .reporting import Reporter
from .sockets import CATEGORY, LoraModel, LossMap
from .training_inputs import CONTINUE, NEW_RUN, name_error, train_config, training_inputs

if TYPE_CHECKING:
    from ..trainer.data.records import Dataset


class TrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainLoRA",
            display_name="Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA on the model that is already loaded and saves it to output/loras.",
            search_aliases=["lora", "train", "finetune", "dreambooth", "训练"],
            is_output_node=True,
            inputs=training_inputs(),
            outputs=[
                LoraModel.Output(
                    display_name="lora", tooltip="The trained LoRA, for Apply LoRA and Compare Baseline."
                ),
                io.String.Output(display_name="lora_path", tooltip="The file's name, as Load LoRA lists it."),
                LossMap.Output(display_name="loss", tooltip="The loss of each step, for Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
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
        **settings: Any,
    ) -> io.NodeOutput:
        from ..trainer.host.training import train_on_loaded

        config = train_config(dataset, **settings)
        with active(cls.hidden.unique_id) as training:
            emit = Reporter(cls.hidden.unique_id, training)
            try:
                result = train_on_loaded(
                    model,
                    clip,
                    vae,
                    dataset,
                    config,
                    emit,
                    new_run=existing_run == NEW_RUN,
                    stop_requested=training.stop_requested,
                )
            finally:
                files_changed()
        if result.stopped:
            record_stop(config.name)
        shown = {
            "lora_path": str(result.path),
            "run_dir": str(result.run),
            "loss_curve": str(result.loss_curve),
            "plan": emit.plan,
            "notices": emit.notices,
        }
        ui: dict[str, Any] = {"run": [shown]}
        if result.previews is not None:
            ui["images"] = [output_image(result.previews)]
        return io.NodeOutput(result.lora, result.path.name, {"loss": result.losses}, ui=ui)
