"""PlanTraining: what a training would take, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from .reporting import Reporter
from .sockets import CATEGORY
from .training_inputs import name_error, tell_of_recipe, train_config, training_inputs

if TYPE_CHECKING:
    from ..trainer.data.records import Dataset


class PlanTraining(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PlanTraining",
            display_name="Plan Training",
            category=CATEGORY,
            description="What Train LoRA would take: memory, time for a step, which levers fit which card.",
            search_aliases=["vram", "memory", "out of memory", "lora", "显存", "plan", "训练计划"],
            is_output_node=True,
            inputs=training_inputs(),
            outputs=[
                io.String.Output(display_name="plan", tooltip="Markdown: what lies where, and the levers."),
                io.String.Output(
                    display_name="table", tooltip="Markdown: what would be chosen on cards of 8 to 24 GB."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return name_error(name) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Dataset,
        existing_run: str = "",
        where: str = "",
        clip_vision: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..trainer.host.training import plan_on_loaded

        emit = Reporter(cls.hidden.unique_id)
        tell_of_recipe(model, settings.get("optimizer"), emit)
        config = train_config(dataset, **settings)
        plan = plan_on_loaded(model, clip, vae, dataset, config, emit, clip_vision=clip_vision)
        text = "\n\n".join([plan.text, plan.table, *emit.notices])
        return io.NodeOutput(plan.text, plan.table, ui=ui.PreviewText(text))
