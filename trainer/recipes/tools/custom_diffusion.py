"""diffusers' script for Custom Diffusion: the arguments of its LoRA scripts, and some of its own."""

from __future__ import annotations

from dataclasses import replace

from ..tool import DATA, FILES, NONE, OTHER_NODES, Reading, number, to, together, truth
from .diffusers import DIFFUSERS, optimizer, prior, steps

_TARGETS = {"crossattn_kv": "kv", "crossattn": "cross-attention"}


def adapter(reading: Reading) -> None:
    reading.now = "freeze_model"
    word = str(reading.given["freeze_model"])
    if word not in _TARGETS:
        reading.leave(NONE)
        return
    reading.set("adapter.kind", "full")
    reading.set("adapter.targets", _TARGETS[word])
    reading.set("adapter.hold_first_token", True)
    if word == "crossattn":
        reading.note("freeze_model crossattn trains the biases of to_out too; here they stay as they are")


def rates(reading: Reading) -> None:
    """One rate for the layers and the words."""
    given, reading.now = reading.given, "learning_rate"
    rate = number("learning_rate", given["learning_rate"])
    if truth(given.get("scale_lr", False)):
        factor = number("train_batch_size", given["train_batch_size"])
        factor *= number("gradient_accumulation_steps", given["gradient_accumulation_steps"])
        factor *= 2 if truth(given.get("with_prior_preservation", False)) else 1
        rate *= factor
        reading.note(f"scale_lr: the rate is multiplied by {factor:g}, as there on one process")
    reading.set("optimizer.learning_rate", rate)


def words(reading: Reading) -> None:
    given, reading.now = reading.given, "modifier_token"
    placeholders = [word for word in str(given.get("modifier_token") or "").split("+") if word]
    if not placeholders:
        return
    initial = str(given["initializer_token"]).split("+")
    reading.leave(OTHER_NODES)
    reading.leave(OTHER_NODES, "initializer_token")
    reading.note(
        f"connect Textual Inversion: placeholder {placeholders[0]}, initial_word {initial[0]}, 1 vector,"
        " with_lora, and the learning rate of Train LoRA"
    )
    if len(placeholders) > 1:
        reading.note(f"a training here has one word: {', '.join(placeholders[1:])} would be left out")


def pictures(reading: Reading) -> None:
    reading.now = "noaug"
    reading.note("pictures are stretched to a square there; here they keep their shape")
    if not truth(reading.given.get("noaug", False)):
        reading.note(
            "without noaug pictures are scaled at random there, with a mask on the loss, and their prompts"
            " say so (far away, close up); this has no counterpart here"
        )


CUSTOM_DIFFUSION = replace(
    DIFFUSERS,
    title="diffusers, Custom Diffusion",
    source="huggingface/diffusers, examples/custom_diffusion as of November 2026",
    signs=frozenset({"modifier_token", "initializer_token", "freeze_model", "real_prior", "noaug"}),
    fields={
        **{name: field for name, field in DIFFUSERS.fields.items() if name not in ("rank", "lora_alpha")},
        **dict.fromkeys(("freeze_model", "modifier_token", "initializer_token", "noaug"), together),
        "hflip": to("framing.flip"),
    },
    left={
        **DIFFUSERS.left,
        DATA: f"{DIFFUSERS.left[DATA]} concepts_list real_prior",
        FILES: f"{DIFFUSERS.left[FILES]} no_safe_serialization",
    },
    defaults={
        **{name: value for name, value in DIFFUSERS.defaults.items() if name != "rank"},
        "freeze_model": "crossattn_kv",
        "initializer_token": "ktn+pll+ucd",
        "learning_rate": 1e-5,
        "num_class_images": 200,
        "resolution": 512,
        "seed": 42,
    },
    scripts=r"^train_custom_diffusion\w*\.py$",
    always=(adapter, rates, words, pictures, steps, optimizer, prior),
    families={r"custom_diffusion": "sd_v1"},
)
