"""TrainObjective: what the training minimises."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.config import HUBER_SCHEDULES, LOSSES, TIMESTEP_SAMPLINGS, WEIGHTINGS, ObjectiveConfig
from .sockets import CATEGORY, Objective

_D = ObjectiveConfig()


class TrainObjective(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainObjective",
            display_name="Train Objective",
            category=CATEGORY,
            description="Noise levels, loss and weighting for Train LoRA. The defaults fit every model.",
            search_aliases=[
                "min snr",
                "huber",
                "timestep",
                "noise offset",
                "flux_shift",
                "training loss",
                "loss",
                "训练目标",
            ],
            inputs=[
                io.Combo.Input(
                    "timestep_sampling",
                    options=list(TIMESTEP_SAMPLINGS),
                    default=_D.timestep_sampling,
                    tooltip="How often each noise level is trained. auto: uniform, for flow models with the"
                    " model's own shift.",
                ),
                io.Combo.Input(
                    "weighting",
                    options=list(WEIGHTINGS),
                    default=_D.weighting,
                    tooltip="Weight of the loss by noise level. min_snr and debiased: SD 1.5, SDXL;"
                    " sigma_sqrt and cosmap: flow models.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=_D.min_snr_gamma,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="γ of min_snr. 5 is usual.",
                ),
                io.Combo.Input(
                    "loss",
                    options=list(LOSSES),
                    default=_D.loss,
                    tooltip="mse is the standard; huber and l1 care less for odd pictures.",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=_D.noise_offset,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Helps eps models to learn very dark and very bright pictures: 0.05 to 0.1.",
                ),
                io.Float.Input(
                    "caption_dropout",
                    default=_D.caption_dropout,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of steps that see no caption: 0.05 to 0.1 helps a style.",
                ),
                io.Float.Input(
                    "t_min",
                    default=_D.t_min,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    advanced=True,
                    tooltip="Start of the trained range: 0 is the clean picture.",
                ),
                io.Float.Input(
                    "t_max",
                    default=_D.t_max,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    advanced=True,
                    tooltip="End of the trained range: 1 is pure noise.",
                ),
                io.Float.Input(
                    "shift",
                    default=_D.shift,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Time shift. 0: the model's own for shift and resolution_shift, else none.",
                ),
                io.Float.Input(
                    "logit_mean",
                    default=_D.logit_mean,
                    min=-5.0,
                    max=5.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Mean of logit_normal.",
                ),
                io.Float.Input(
                    "logit_std",
                    default=_D.logit_std,
                    min=0.01,
                    max=5.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Standard deviation of logit_normal.",
                ),
                io.Float.Input(
                    "sigmoid_scale",
                    default=_D.sigmoid_scale,
                    min=0.01,
                    max=5.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Width of sigmoid, shift, resolution_shift and flux_shift.",
                ),
                io.Float.Input(
                    "mode_scale",
                    default=_D.mode_scale,
                    min=-1.0,
                    max=1.75,
                    step=0.01,
                    advanced=True,
                    tooltip="Scale of mode sampling (1.29 in the SD3 paper).",
                ),
                io.Float.Input(
                    "huber_c",
                    default=_D.huber_c,
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where huber turns from square to straight.",
                ),
                io.Combo.Input(
                    "huber_schedule",
                    options=list(HUBER_SCHEDULES),
                    default=_D.huber_schedule,
                    advanced=True,
                    tooltip="How huber_c follows the noise level.",
                ),
                io.Float.Input(
                    "input_perturbation",
                    default=_D.input_perturbation,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Extra noise in the input that the target does not see: 0.1.",
                ),
                io.Float.Input(
                    "guidance",
                    default=_D.guidance,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Guidance embedding of distilled models (Flux). 1 is usual for training.",
                ),
                io.Boolean.Input(
                    "masked",
                    default=_D.masked,
                    advanced=True,
                    tooltip="Use the masks of the dataset (<picture>-masklabel.png), if it has any.",
                ),
                io.Float.Input(
                    "unmasked_weight",
                    default=_D.unmasked_weight,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How much the part outside a mask counts.",
                ),
                io.Boolean.Input(
                    "tag_shuffle",
                    default=_D.tag_shuffle,
                    optional=True,
                    advanced=True,
                    tooltip="Show the tags of a caption, which commas divide, in another order each time.",
                ),
                io.Int.Input(
                    "keep_tags",
                    default=_D.keep_tags,
                    min=0,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="Tags at the beginning that are neither moved nor dropped, such as the trigger.",
                ),
                io.Float.Input(
                    "tag_dropout",
                    default=_D.tag_dropout,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Share of the other tags that is left out each time: 0.1 is usual.",
                ),
                io.Int.Input(
                    "caption_variants",
                    default=_D.caption_variants,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="Texts of a picture that are encoded beforehand, where its caption varies. A text"
                    " encoder that trains gets a new one each time.",
                ),
            ],
            outputs=[Objective.Output(display_name="objective", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(ObjectiveConfig(**options))
