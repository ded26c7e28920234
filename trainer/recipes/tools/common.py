"""What several trainers have in common: diffusers' schedules, bitsandbytes' optimizers, percentages."""

from __future__ import annotations

from typing import Any

from ..tool import NONE, Converter, Reading, is_off, number, truth

SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "cosine_with_hard_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
}
"""diffusers' names → ours."""
OPTIMIZERS = {
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
    "adamw_8bit": "adamw8bit",
    "adafactor": "adafactor",
    "lion": "lion",
    "lion8bit": "lion8bit",
    "lion_8bit": "lion8bit",
    "prodigy": "prodigy",
    "schedule_free_adamw": "schedule_free_adamw",
    "adamwschedulefree": "schedule_free_adamw",
    "prodigyplusschedulefree": "prodigy_plus",
    "prodigy_plus_schedule_free": "prodigy_plus",
    "stableadamw": "stable_adamw",
    **{name: name for name in ("muon", "came", "ademamix", "adan", "adopt")},
}
"""Their names in small letters, without the package → ours."""
PRECISIONS = {"no": "fp32", "fp32": "fp32", "float32": "fp32", "fp16": "fp16", "float16": "fp16"}
PRECISIONS |= {"bf16": "bf16", "bfloat16": "bf16"}
NO_WARMUP = "constant there has no warm-up, whatever lr_warmup_steps says"
KOHYA_UNET = r"regex:transformer_blocks\.\d+\.|\d\.proj_(in|out)$"
"""The linear layers of a UNet's transformers, with their projections in and out."""


def schedule(reading: Reading, value: Any) -> None:
    """diffusers' `get_scheduler`: `constant` leaves the warm-up out."""
    word = str(value).strip().lower()
    if word not in SCHEDULES:
        reading.leave(NONE)
        return
    reading.set("optimizer.schedule", SCHEDULES[word])


def warmup(steps: str, scheduler: str = "lr_scheduler") -> Converter:
    """steps: their name for the steps of the run, of which a number below 1 is a share."""

    def converter(reading: Reading, value: Any) -> None:
        if reading.given.get(scheduler) == "constant":
            if not is_off(value):
                reading.note(NO_WARMUP)
            value = 0
        share = number(reading.now, value)
        if 0 < share < 1:
            share *= number(steps, reading.given.get(steps) or 0)
            reading.note(f"rounded: a share of the steps became {round(share)} warm-up steps")
        reading.set("optimizer.warmup_steps", round(share))

    return converter


def optimizer(reading: Reading, value: Any) -> None:
    word = str(value).strip().lower().rpartition(".")[2]
    if word in ("", "none"):
        word = "adamw"
    if word not in OPTIMIZERS:
        reading.leave(NONE)
        return
    reading.set("optimizer.name", OPTIMIZERS[word])
    if OPTIMIZERS[word] == "adafactor":
        reading.note("Adafactor there may scale the rate by itself; here learning_rate is what counts")


def optimizer_args(reading: Reading, value: Any) -> None:
    """`name=value` items: weight_decay, betas and eps have settings here."""
    items = value if isinstance(value, list) else str(value).split()
    for item in (str(item).strip("\"',") for item in items):
        name, _, text = item.partition("=")
        if name == "weight_decay":
            reading.set("optimizer.weight_decay", text)
        elif name == "eps":
            reading.set("optimizer.eps", text)
        elif name == "betas":
            betas = [number("betas", b) for b in text.strip("()[]").split(",") if b.strip()]
            reading.set("optimizer.betas", betas)
        else:
            reading.given[f"{reading.now} {name}"] = text
            reading.leave(NONE, f"{reading.now} {name}")


def side(reading: Reading, value: Any) -> None:
    """`512`, `"512,768"`, `[512, 768]` or `"512x768"`: the side of the square of that area."""
    parts = value if isinstance(value, list) else str(value).replace("x", ",").split(",")
    sides = [number(reading.now, part) for part in parts]
    if len(sides) == 1:
        reading.set("data.resolution", sides[0])
        return
    area = round((sides[0] * sides[1]) ** 0.5)
    if sides[0] != sides[1]:
        reading.note(f"rounded: {reading.now} of two sides became the side {area} of a square of that area")
    reading.set("data.resolution", area)


def min_snr(reading: Reading, value: Any) -> None:
    reading.set("objective.weighting", "min_snr")
    reading.set("objective.min_snr_gamma", value)


def crop(reading: Reading, value: Any) -> None:
    """diffusers' `center_crop`: otherwise a random one in each epoch."""
    reading.set("framing.crop", "center" if truth(value) else "random")
    if not truth(value):
        reading.note(
            "random crops are drawn once here, and anew in each epoch there; see crops of Image Framing"
        )
