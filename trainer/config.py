"""What a run is told: frozen, keyword-only, checked once.

`TrainConfig` is written as JSON beside every result and read back with `TrainConfig.from_dict`.
A misspelt field is a TypeError; a value out of range is a `ConfigError` that names the remedy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import ConfigError
from .rules import Rules, check_targets, selections
from .text import readable

# Windows' reserved characters too: a run's folder may be synced or shared.
_BAD_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]')


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _check_range(settings: Any, low: float, high: float, *names: str, hint: str = "") -> None:
    """high: math.inf for numbers without a bound, which still have to be finite."""
    bounds = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:.12g}"
    for name in names:
        value = getattr(settings, name)
        ok = low <= value <= high and math.isfinite(value)
        _check(ok, f"{name} is {value}; choose {bounds}{hint and f' ({hint})'}")


def _check_positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _check(0 < value < math.inf, f"{name} is {value}; choose a number above 0")


RESERVED_NAMES = ("cache", "captions", "class-images", "evidence", "graph-images", "jobs", "unpacked")
"""Folders of ours beside those of the runs."""


def check_name(name: str) -> str:
    """Return `name` stripped; what cannot be the name of a file or of a run's folder raises ConfigError."""
    name = name.strip()
    bad = not name or _BAD_NAME.search(name) or name.startswith(".") or name.endswith(".") or len(name) > 100
    if bad:
        raise ConfigError(
            f"name {name!r} cannot be a file name; use up to 100 letters, digits, '-', '_' or spaces,"
            " without slashes, colons or a leading dot"
        )
    if name.casefold() in RESERVED_NAMES:
        raise ConfigError(f"name {name!r} is that of a folder beside the runs; choose another, as my-{name}")
    return name


ADAPTER_KINDS = ("lora", "locon", "rslora", "dora", "loha", "lokr", "oft")
ADAPTER_INITS = ("gaussian", "kaiming")
ADAPTER_FILE_NAMES = ("comfyui", "diffusers", "lycoris")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    kind: str = "lora"
    """One of ADAPTER_KINDS; docs/adapters.md has the formulas."""
    rank: int = 16
    """Inner dimension r of the update ΔW = (α/r)·B·A; for oft the largest size of a rotated block."""
    alpha: float = 0.0
    """Scale numerator α; 0 means equal to the rank, so that ΔW = B·A."""
    dropout: float = 0.0
    """Share of what each adapter sees (lora kinds) or changes (loha, lokr) that is dropped in a step."""
    init: str = "gaussian"
    """Distribution of the factors that do not start at zero: gaussian or kaiming (uniform)."""
    targets: str = "attention"
    """Which layers get an adapter; see `trainer.adapters.targets`."""
    rank_by_block: str = ""
    """Lines `regex=rank`: the first one found in a layer's name decides its rank."""
    lr_by_block: str = ""
    """Lines `regex=factor` on the learning rate of the layers found; 0 freezes them."""
    start_from: str = ""
    """LoRA file, as ComfyUI lists it, that training goes on from; its kind, ranks and alphas count then."""
    start_alpha: float = 0.0
    """α of a starting file that carries none (DiffSynth's); 0 means equal to its rank."""
    file_names: str = "comfyui"
    """Names and spelling of the saved file: comfyui (kohya's names, or ComfyUI's and diffusers' common ones),
    diffusers, or lycoris (kohya's names for every family, DoRA and LoKr as LyCORIS reads them)."""
    blocks: str = ""
    """Lines of blocks by name (`up 3-5`) or expressions: only layers in these get an adapter; "" is all."""

    def __post_init__(self) -> None:
        _check(self.kind in ADAPTER_KINDS, f"kind is {self.kind!r}; choose one of {', '.join(ADAPTER_KINDS)}")
        _check_range(self, 1, 1024, "rank", hint="4 to 32 is usual")
        _check_range(self, 0, math.inf, "alpha", "start_alpha", hint="0: equal to the rank")
        _check(0 <= self.dropout < 1, f"dropout is {self.dropout}; choose 0 (off) to 0.9 (0.1 is usual)")
        _check(self.init in ADAPTER_INITS, f"init is {self.init!r}; choose gaussian or kaiming")
        _check(
            self.file_names in ADAPTER_FILE_NAMES,
            f"file_names is {self.file_names!r}; choose one of {', '.join(ADAPTER_FILE_NAMES)}",
        )
        if self.kind == "oft":
            _check(self.dropout == 0, "dropout does not exist for kind oft; set dropout to 0")
            _check(self.alpha == 0, "alpha does not exist for kind oft; set alpha to 0")
        check_targets(self.targets)
        selections(self.blocks, "blocks")
        for rule in self.rank_rules.rules:
            _check(not rule.shape, f"rank_by_block: {rule.text!r} is for learning rates; write whole numbers")
        for rank in self.rank_rules.values:
            _check(
                rank == int(rank) and 1 <= rank <= 1024,
                f"rank_by_block has the rank {rank:g}; choose whole numbers from 1 to 1024",
            )
        for factor in self.lr_rules.values:
            _check(factor >= 0, f"lr_by_block has the factor {factor:g}; choose 0 (frozen) or more")

    @property
    def rank_rules(self) -> Rules:
        return Rules.parse(self.rank_by_block, "rank_by_block")

    @property
    def lr_rules(self) -> Rules:
        return Rules.parse(self.lr_by_block, "lr_by_block")

    @property
    def scale_alpha(self) -> float:
        return self.alpha or float(self.rank)


TIMESTEP_SAMPLINGS = (
    "auto",
    "uniform",
    "logit_normal",
    "sigmoid",
    "shift",
    "resolution_shift",
    "flux_shift",
    "mode",
    "cosmap",
)
WEIGHTINGS = ("none", "min_snr", "debiased_kohya", "debiased_onetrainer", "sigma_sqrt", "cosmap")
LOSSES = ("mse", "huber", "l1")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
PRIOR_METHODS = ("none", "class_images", "class_images_base_target", "output_preservation")
OPTIMIZERS = (
    "adamw",
    "adamw8bit",
    "adafactor",
    "lion",
    "prodigy",
    "schedule_free_adamw",
    "lion8bit",
    "muon",
    "came",
    "ademamix",
    "adan",
    "adopt",
    "stable_adamw",
    "prodigy_plus",
)
SCHEDULES = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")
CAPTION_SYNTAXES = ("text", "comfyui")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
FITS = ("auto", "manual")
AS_LOADED = "as loaded"
BASE_PRECISIONS = (AS_LOADED, "fp8", "int8")


def _check_choice(field_name: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, f"{field_name} is {value!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    timestep_sampling: str = "auto"
    """Distribution of noise levels; "auto" is uniform, for flow models with the model's own shift."""
    t_min: float = 0.0
    """Lowest time fraction that is trained; 0 is the clean picture."""
    t_max: float = 1.0
    """Highest time fraction that is trained; 1 is noise."""
    shift: float = 0.0
    """Time shift s of "shift" and "resolution_shift"; 0 is the model's own. Other methods: 0 is none."""
    logit_mean: float = 0.0
    """Mean m of "logit_normal"; below 0 trains cleaner pictures more."""
    logit_std: float = 1.0
    """Standard deviation of "logit_normal"."""
    sigmoid_scale: float = 1.0
    """Factor on the normal draw of "sigmoid", "shift" and "resolution_shift"."""
    mode_scale: float = 1.29
    """Scale s of "mode": -1 to 2/(π − 2), where the density stays positive (Esser et al. 2024, eq. 20)."""
    weighting: str = "none"
    """Weight of the loss along the noise schedule; see `trainer.loss.loss_weight`."""
    min_snr_gamma: float = 5.0
    """γ of "min_snr": the signal-to-noise ratio from which on weights fall."""
    loss: str = "mse"
    """One of LOSSES: the distance d of an element."""
    huber_c: float = 0.1
    """Where "huber" turns from a square into a line."""
    huber_schedule: str = "snr"
    """How huber_c follows the noise level; one of HUBER_SCHEDULES."""
    noise_offset: float = 0.0
    """Standard deviation of a noise that is constant over each channel (0.05 to 0.1 is usual)."""
    input_perturbation: float = 0.0
    """Extra noise in the network's input that the target does not see (0.1 is usual)."""
    caption_dropout: float = 0.0
    """Share of draws that see the empty caption."""
    guidance: float = 1.0
    """Guidance embedding of models that were distilled with one (Flux); others keep their own value."""
    masked: bool = True
    """Weight the loss by the picture's mask where it has one."""
    unmasked_weight: float = 0.1
    """Weight of what lies outside the mask."""
    tag_shuffle: bool = False
    """Show the tags of a caption, which commas divide, in another order each time."""
    keep_tags: int = 1
    """Tags at a caption's beginning that tag_shuffle and tag_dropout leave where they are."""
    tag_dropout: float = 0.0
    """Share of the other tags that is left out, drawn anew each time."""
    caption_variants: int = 8
    """Texts of a picture that are encoded beforehand, where its caption varies; a text encoder that trains
    gets a new one each time."""

    def __post_init__(self) -> None:
        _check_choice("timestep_sampling", self.timestep_sampling, TIMESTEP_SAMPLINGS)
        _check_choice("weighting", self.weighting, WEIGHTINGS)
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("huber_schedule", self.huber_schedule, HUBER_SCHEDULES)
        _check(
            0 <= self.t_min < self.t_max <= 1,
            f"t_min is {self.t_min} and t_max is {self.t_max}; choose 0 <= t_min < t_max <= 1",
        )
        _check_range(self, 0, 1, "caption_dropout", "unmasked_weight", "tag_dropout")
        _check_range(self, 0, 1000, "keep_tags")
        _check_range(self, 1, 1000, "caption_variants", hint="8 is usual")
        _check_range(self, 0, math.inf, "shift", "noise_offset", "input_perturbation", "guidance")
        _check_range(self, -100, 100, "logit_mean")
        _check_range(self, -1, 1.75, "mode_scale")
        _check_positive(self, "min_snr_gamma", "huber_c", "logit_std", "sigmoid_scale")


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """How the class is kept while its member is learned; formulas in `trainer.step`."""

    method: str = "none"
    """One of PRIOR_METHODS."""
    weight: float = 1.0
    """Factor on the prior, which is added to the loss."""
    class_prompt: str = ""
    """Prompt of class pictures that are made, and of output preservation: what is kept."""
    class_images: int = 100
    """Class pictures wanted; what the dataset lacks is sampled from the class prompt by the base."""
    steps: int = 20
    """Sampling steps of class pictures that are made."""
    cfg: float = 7.0
    """Guidance scale of class pictures that are made."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_prompt", readable(self.class_prompt))
        _check_choice("method", self.method, PRIOR_METHODS)
        _check_range(self, 0, math.inf, "weight", hint="1 is usual")
        _check_range(self, 0, 10_000, "class_images")
        _check_range(self, 1, 1000, "steps", hint="20 is usual")
        _check_range(self, 0, 100, "cfg")
        if self.method == "output_preservation":
            _check(
                bool(self.class_prompt.strip()),
                "output preservation needs a class_prompt, for example 'a photo of a figurine'",
            )

    @property
    def uses_pictures(self) -> bool:
        return self.weight > 0 and self.method.startswith("class_images")

    @property
    def preserves_output(self) -> bool:
        return self.weight > 0 and self.method == "output_preservation"


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    name: str = "adamw"
    """One of OPTIMIZERS."""
    learning_rate: float = 1e-4
    """Highest rate of the run."""
    text_encoder_lr: float = 0.0
    """Learning rate of a LoRA on the text encoder; 0 leaves the text encoder frozen."""
    weight_decay: float = 0.01
    """Decoupled, as in AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of gradient and squared gradient; lion has its own second one."""
    eps: float = 1e-8
    """Added to the root of the squared gradient."""
    lora_plus_ratio: float = 1.0
    """LoRA+: B learns this many times faster than A (16 in Hayou et al. 2024)."""
    schedule: str = "cosine"
    """One of SCHEDULES: the learning rate after the warm-up."""
    warmup_steps: int = -1
    """Steps of linear warm-up; -1 means 5 % of the run, at most 100."""
    cycles: int = 1
    """Restarts of "cosine_with_restarts"."""
    power: float = 1.0
    """Exponent of "polynomial"."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this L2 norm over all adapter weights; 0 switches clipping off."""
    accumulation: int = 1
    """Batches whose gradients are averaged into one optimizer step."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the adapter weights; 0 is off."""
    save_ema: bool = True
    """With EMA: save the averaged weights instead of the last ones."""

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.name, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        # Prodigy is run at 1; nothing sensible lies above.
        _check_range(self, 0, 1, "learning_rate", "text_encoder_lr", hint="1e-4 is usual")
        _check_range(self, 0, math.inf, "weight_decay", "max_grad_norm")
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _check(in_range, f"betas are {self.betas}; choose two numbers from 0 to below 1")
        _check_range(self, -1, math.inf, "warmup_steps", hint="-1: automatic")
        _check_range(self, 1, 4096, "accumulation")
        _check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; choose 0 (off) to 0.9999")
        _check_positive(self, "eps", "lora_plus_ratio", "power")
        _check_range(self, 1, math.inf, "cycles")

    def warmup_for(self, steps: int) -> int:
        return min(100, steps // 20) if self.warmup_steps < 0 else self.warmup_steps


# What ComfyUI's and other readers' prompts divide at, and where names of tensors do.
_NO_PLACEHOLDER = re.compile(r"[\s()\[\]{}:,.|\\]")
_NO_EMBEDDING_NAME = re.compile(r"[\s()\[<,]")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
    """Textual Inversion (Gal et al. 2022): vectors that stand for a word in the text encoder's input."""

    vectors: int = 0
    """How many the word gets; 0 trains none."""
    placeholder: str = ""
    """The word of the captions that the vectors stand for; "" only until the dataset's trigger is known."""
    initial_word: str = ""
    """Each vector begins as the mean of this text's token embeddings."""
    learning_rate: float = 5e-4
    """Of the vectors; the LoRA has its own."""
    with_lora: bool = False
    """Train a LoRA at the same time (pivotal tuning); without one the network stays as it is."""

    def __post_init__(self) -> None:
        for name in ("placeholder", "initial_word"):
            object.__setattr__(self, name, readable(getattr(self, name)).strip())
        _check_range(self, 0, 75, "vectors", hint="1 to 16 is usual")
        _check_range(self, 0, 1, "learning_rate", hint="5e-4 is usual")
        if not self.vectors:
            return
        word = self.placeholder
        _check(
            len(word) <= 64 and not _NO_PLACEHOLDER.search(word),
            f"placeholder is {word!r}; choose one word of up to 64 characters, without spaces, brackets,"
            " commas, colons and dots, such as aawxbc or <my-cat>",
        )
        _check(
            bool(self.initial_word),
            "initial_word is empty; choose a word for what the pictures show, such as cat or painting",
        )


EDIT_NODES = ("auto", "TextEncodeQwenImageEdit")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    batch_size: int = 1
    """Pictures in a batch."""
    resolution: int = 512
    """Side of the square whose area a picture has at most; pixels."""
    caption_syntax: str = "text"
    """text: a caption means its letters; comfyui: `(word:1.3)` and `embedding:name` as in CLIPTextEncode."""
    edit_node: str = "auto"
    """The stock node whose conditions an edit model is trained with; "auto" is that for its text encoder."""

    def __post_init__(self) -> None:
        _check_choice("edit_node", self.edit_node, EDIT_NODES)
        _check_choice("caption_syntax", self.caption_syntax, CAPTION_SYNTAXES)
        _check_range(self, 1, 1024, "batch_size")
        _check_range(self, 16, 8192, "resolution")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    checkpointing: int = 0
    """Gradient checkpointing: 0 off, 1 every block, n every n-th block."""
    streamed: float = 0.0
    """Share of the blocks that stay in host memory and come to the device for their turn; checkpointed."""
    precision: str = "auto"
    """What the network computes in; "auto" is what ComfyUI chose for it."""
    compile: bool = False
    """torch.compile for each block: slower start, faster steps."""
    fit: str = "auto"
    """auto: checkpointing, streamed, base_precision and offload_activations are chosen by what fits
    (`memory.plan`); manual: they are taken as they are."""
    base_precision: str = AS_LOADED
    """What the frozen weights of the blocks are held in for the run; the model itself stays what it is."""
    offload_activations: bool = False
    """What checkpointed blocks keep until their recomputation lies in host memory."""

    def __post_init__(self) -> None:
        _check_range(self, 0, math.inf, "checkpointing", hint="0: off")
        _check_range(self, 0, 1, "streamed", hint="0: the whole model is on the device")
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("fit", self.fit, FITS)
        _check_choice("base_precision", self.base_precision, BASE_PRECISIONS)
        kept = self.checkpointing or self.streamed or self.fit != "manual" or not self.offload_activations
        _check(
            bool(kept),
            "offload_activations is True but checkpointing and streamed are 0; set checkpointing to 1, for"
            " inputs of checkpointed blocks are what lies in host memory",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveConfig:
    every: int = 100
    """Steps between checkpoints; 0 writes one only at the end and when a run is stopped."""
    keep: int = 2
    """How many states are kept. The LoRA of each checkpoint stays."""

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def __post_init__(self) -> None:
        _check_range(self, 0, math.inf, "every", hint="0: only at the end")
        _check_range(self, 1, math.inf, "keep")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig:
    """Sample pictures while a run goes on. They change nothing in the weights."""

    prompts: tuple[str, ...] = ()
    """One picture each; none means no previews."""
    negative: str = ""
    """What the pictures shall not show."""
    every: int = 100
    """Steps between previews. Step 0, the untouched model, and the last step are always shown."""
    seed: int = 0
    """Of the first prompt's picture; the next ones count up. The same at every step."""
    steps: int = 20
    """Sampling steps."""
    cfg: float = 7.0
    """Guidance scale; at 1 the negative prompt is not used."""
    sampler_name: str = "euler"
    """As ComfyUI's KSampler lists it."""
    scheduler: str = "normal"
    """As ComfyUI's KSampler lists it."""
    width: int = 0
    """Pixels; 0 is the resolution of the dataset."""
    height: int = 0
    """Pixels; 0 is the resolution of the dataset."""
    frames: int = 1
    """Of a video model: the first, the middle and the last are shown."""
    unrelated_prompts: tuple[str, ...] = ()
    """Drawn after `prompts`: of other things than the subject, by which a judge measures the drift."""

    @property
    def all_prompts(self) -> tuple[str, ...]:
        return self.prompts + self.unrelated_prompts

    def __post_init__(self) -> None:
        for name in ("prompts", "unrelated_prompts"):
            object.__setattr__(self, name, tuple(readable(p) for p in getattr(self, name)))
        object.__setattr__(self, "negative", readable(self.negative))
        _check_range(self, 1, math.inf, "every")
        _check_range(self, 1, 1000, "steps", hint="20 is usual")
        _check_range(self, 0, 100, "cfg")
        _check(0 <= self.seed < 2**64, f"seed is {self.seed}; choose 0 to 2^64 - 1")
        _check_range(self, 0, 8192, "width", "height", hint="0: the dataset's resolution")
        _check_range(self, 1, 1025, "frames", hint="1: a still picture")
        _check(
            bool(self.prompts or not self.unrelated_prompts),
            "unrelated_prompts is written but prompts is empty, so no pictures are drawn; write a line into"
            " prompts",
        )


BY_LOSS, BY_JUDGE = DECIDES = ("held-out loss", "judge")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Which step is best: by the loss on pictures that are not trained on, or by a judge of the previews."""

    held_out: int = 0
    """Pictures of the dataset that are kept out of training; 0 is no validation."""
    every: int = 50
    """Steps between measurements. Step 0 and the last step are always measured."""
    keep_best: bool = False
    """The result is the LoRA of the best step instead of the last step's."""
    patience: int = 0
    """Stop after this many measurements without a new best; 0 never stops early."""
    decides: str = BY_LOSS
    """What the best step is: that with the lowest held-out loss, or that of `evidence.choice`."""
    judge: str = ""
    """Name and digest of the network that judges the previews; empty without one."""
    max_drift: float = 0.5
    """By the judge the best stays below: `evidence.choice.Bounds`."""
    max_copies: float = 0.25
    """The same, 0 to 1."""

    def __post_init__(self) -> None:
        _check_range(self, 0, math.inf, "held_out", hint="0: no validation")
        _check_range(self, 1, math.inf, "every")
        _check_range(self, 0, math.inf, "patience", hint="0: never stop early")
        _check_choice("decides", self.decides, DECIDES)
        _check_range(self, 0, 10, "max_drift")
        _check_range(self, 0, 1, "max_copies")
        if self.decides == BY_JUDGE:
            _check(
                bool(self.judge),
                "decides is judge but there is none; connect clip_vision or name judge_folder",
            )
            return
        for name in ("keep_best", "patience"):
            value = getattr(self, name)
            _check(
                self.held_out > 0 or not value,
                f"{name} is {value} but held_out is 0, so nothing is measured; hold out one or more pictures,"
                " or let a judge decide",
            )


_FORMER = {("data", "digest")}
"""(section, field) that files of earlier versions have. The dataset's digest is in run.json now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    name: str = "my_lora"
    """File name of the LoRA, and folder of the run."""
    steps: int = 1000
    """Optimizer steps. With `epochs`, the steps follow from the dataset."""
    epochs: int = 0
    """Passes over the dataset; 0 means that `steps` counts."""
    seed: int = 0
    """Decides every random draw."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_name(self.name))
        if self.embedding.vectors:
            self._check_embedding()
        _check_range(self, 1, 1_000_000, "steps")
        _check_range(self, 0, 100_000, "epochs", hint="0: steps count")
        _check(0 <= self.seed < 2**64, f"train_seed is {self.seed}; choose 0 to 2^64 - 1")
        _check(
            bool(self.preview.prompts or not self.validation.judge),
            "there is a judge but no pictures for it; write a line into prompts of TrainPreview",
        )

    def _check_embedding(self) -> None:
        _check(
            bool(self.embedding.placeholder),
            "placeholder is empty and the dataset has no trigger word; set it to the word that stands for"
            " your subject in the captions (Textual Inversion)",
        )
        _check(
            not _NO_EMBEDDING_NAME.search(self.name),
            f"name {self.name!r} cannot stand behind embedding: in a prompt; use letters, digits, '-' or '_'",
        )
        if self.trains_lora:
            return
        unused = {
            "text_encoder_lr (Train Optimizer)": self.optimizer.text_encoder_lr > 0,
            "start_from (LoRA Adapter)": bool(self.adapter.start_from),
            "Prior Preservation": self.prior.uses_pictures or self.prior.preserves_output,
        }
        for what, used in unused.items():
            _check(
                not used,
                f"{what} is for a LoRA and with_lora is off; switch with_lora on (Textual Inversion) or leave"
                " it out",
            )

    @property
    def trains_lora(self) -> bool:
        return self.embedding.with_lora or not self.embedding.vectors

    @property
    def encodes_each_step(self) -> bool:
        """Whether something in front of the network is trained, so that no condition can be kept."""
        return self.optimizer.text_encoder_lr > 0 or self.embedding.vectors > 0

    def total_steps(self, samples: int) -> int:
        """Optimizer steps of the run; with epochs ceil(epochs · ceil(samples / batch) / accumulation).

        Where that does not divide, the last step takes batches of one epoch more.
        """
        if not self.epochs:
            return self.steps
        return -(-self.epochs * -(-samples // self.data.batch_size) // self.optimizer.accumulation)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`, also after a trip through JSON (lists become tuples again).

        Fields that earlier versions had are left out.
        """
        sections = {
            f.name: f.default_factory
            for f in fields(cls)
            if callable(f.default_factory)  # type: ignore[misc]
        }
        values: dict[str, Any] = dict(data)
        for name, section in sections.items():
            if name in values:
                items = ((k, v) for k, v in values[name].items() if (name, k) not in _FORMER)
                given = {k: tuple(v) if isinstance(v, list) else v for k, v in items}
                values[name] = section(**given)  # type: ignore[operator]
        return cls(**values)
