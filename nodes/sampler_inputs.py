"""What KSampler asks for, for the nodes that draw pictures to compare."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.host.sample import SAMPLERS, SCHEDULERS


def sampler_inputs() -> list[io.WidgetInput]:
    """Steps, guidance, sampler, scheduler, and the size of the pictures, by the names of `SampleSettings`."""
    return [
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps."),
        io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale."),
        io.Combo.Input("sampler_name", options=SAMPLERS, default="euler", tooltip="As in KSampler."),
        io.Combo.Input("scheduler", options=SCHEDULERS, default="normal", tooltip="As in KSampler."),
        io.Int.Input("width", default=512, min=64, max=8192, step=8, tooltip="Width in pixels."),
        io.Int.Input("height", default=512, min=64, max=8192, step=8, tooltip="Height in pixels."),
    ]
