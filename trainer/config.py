"""What a run is told: frozen, keyword-only, checked once.

`TrainConfig` is written as JSON beside every result and read back with `TrainConfig.from_dict`.
A misspelt field is a TypeError; a value out of range is a `ConfigError` that names the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import ConfigError
from .rules import Rules, check_targets

# Windows' reserved characters too: a run's folder may be synced or shared.
_BAD_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def check_name(name: str) -> str:
    """Return `name` stripped; a name with path parts, reserved characters or nothing in it is refused."""
    name = name.strip()
    bad = not name or _BAD_NAME.search(name) or name.startswith(".") or name.endswith(".") or len(name) > 100
    if bad:
        raise ConfigError(
            f"name {name!r} cannot be a file name; use up to 100 letters, digits, '-', '_' or spaces,"
            " without slashes, colons or a leading dot"
        )
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

    def __post_init__(self) -> None:
        _check(self.kind in ADAPTER_KINDS, f"kind is {self.kind!r}; choose one of {', '.join(ADAPTER_KINDS)}")
        _check(1 <= self.rank <= 1024, f"rank is {self.rank}; choose 1 to 1024 (4 to 32 is usual)")
        _check(self.alpha >= 0, f"alpha is {self.alpha}; choose 0 (equal to the rank) or a positive number")
        _check(0 <= self.dropout < 1, f"dropout is {self.dropout}; choose 0 (off) to 0.9 (0.1 is usual)")
        _check(self.init in ADAPTER_INITS, f"init is {self.init!r}; choose gaussian or kaiming")
        _check(self.start_alpha >= 0, f"start_alpha is {self.start_alpha}; choose 0 (the rank) or more")
        _check(
            self.file_names in ADAPTER_FILE_NAMES,
            f"file_names is {self.file_names!r}; choose one of {', '.join(ADAPTER_FILE_NAMES)}",
        )
        if self.kind == "oft":
            _check(self.dropout == 0, "dropout does not exist for kind oft; set dropout to 0")
            _check(self.alpha == 0, "alpha does not exist for kind oft; set alpha to 0")
        check_targets(self.targets)
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
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free_adamw")
SCHEDULES = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def _check_choice(field_name: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, f"{field_name} is {value!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    timestep_sampling: str = "auto"
    """Distribution of noise levels; "auto" is uniform, for flow models with the model's own shift."""
    t_min: float = 0.0
    t_max: float = 1.0
    """Range of the time fraction that is trained: 0 is the clean picture, 1 is noise."""
    shift: float = 0.0
    """Time shift s of "shift" and "resolution_shift"; 0 is the model's own. Other methods: 0 is none."""
    logit_mean: float = 0.0
    logit_std: float = 1.0
    sigmoid_scale: float = 1.0
    mode_scale: float = 1.29
    weighting: str = "none"
    """Weight of the loss along the noise schedule; see `trainer.loss.loss_weight`."""
    min_snr_gamma: float = 5.0
    loss: str = "mse"
    huber_c: float = 0.1
    huber_schedule: str = "snr"
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

    def __post_init__(self) -> None:
        _check_choice("timestep_sampling", self.timestep_sampling, TIMESTEP_SAMPLINGS)
        _check_choice("weighting", self.weighting, WEIGHTINGS)
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("huber_schedule", self.huber_schedule, HUBER_SCHEDULES)
        _check(
            0 <= self.t_min < self.t_max <= 1,
            f"t_min is {self.t_min} and t_max is {self.t_max}; choose 0 <= t_min < t_max <= 1",
        )
        for name in ("caption_dropout", "unmasked_weight"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"{name} is {value}; choose 0 to 1")
        for name in ("shift", "noise_offset", "input_perturbation", "guidance"):
            value = getattr(self, name)
            _check(value >= 0, f"{name} is {value}; choose 0 or more")
        for name in ("min_snr_gamma", "huber_c", "logit_std", "sigmoid_scale"):
            value = getattr(self, name)
            _check(value > 0, f"{name} is {value}; choose a number above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """How the class is kept while its member is learned; formulas in `trainer.step`."""

    method: str = "none"
    weight: float = 1.0
    class_prompt: str = ""
    class_images: int = 100
    """Class pictures wanted; what the dataset lacks is sampled from the class prompt by the base."""
    steps: int = 20
    cfg: float = 7.0

    def __post_init__(self) -> None:
        _check_choice("method", self.method, PRIOR_METHODS)
        _check(self.weight >= 0, f"weight is {self.weight}; choose 0 or more (1 is usual)")
        _check(0 <= self.class_images <= 10_000, f"class_images is {self.class_images}; choose 0 to 10000")
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
    learning_rate: float = 1e-4
    text_encoder_lr: float = 0.0
    """Learning rate of a LoRA on the text encoder; 0 leaves the text encoder frozen."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    lora_plus_ratio: float = 1.0
    """LoRA+: B learns this many times faster than A (16 in Hayou et al. 2024)."""
    schedule: str = "cosine"
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
        for name in ("learning_rate", "text_encoder_lr"):
            lr = getattr(self, name)
            # Prodigy is run at 1; nothing sensible lies above.
            _check(0 <= lr <= 1, f"{name} is {lr}; choose 0 to 1 (1e-4 is usual)")
        for name in ("weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            _check(value >= 0, f"{name} is {value}; choose 0 or more")
        _check(self.warmup_steps >= -1, f"warmup_steps is {self.warmup_steps}; choose -1 (automatic) or more")
        _check(1 <= self.accumulation <= 4096, f"accumulation is {self.accumulation}; choose 1 to 4096")
        _check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; choose 0 (off) to 0.9999")
        _check(self.lora_plus_ratio > 0, f"lora_plus_ratio is {self.lora_plus_ratio}; choose 1 (off) to 32")
        _check(self.cycles >= 1, f"cycles is {self.cycles}; choose 1 or more")

    def warmup_for(self, steps: int) -> int:
        return min(100, steps // 20) if self.warmup_steps < 0 else self.warmup_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    batch_size: int = 1
    resolution: int = 512

    def __post_init__(self) -> None:
        _check(1 <= self.batch_size <= 1024, f"batch_size is {self.batch_size}; choose 1 to 1024")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    checkpointing: int = 0
    """Gradient checkpointing: 0 off, 1 every block, n every n-th block."""
    precision: str = "auto"
    """What the network computes in; "auto" is what ComfyUI chose for it."""
    compile: bool = False
    """torch.compile for each block: slower start, faster steps."""

    def __post_init__(self) -> None:
        _check(self.checkpointing >= 0, f"checkpointing is {self.checkpointing}; choose 0 (off), 1 or more")
        _check_choice("precision", self.precision, PRECISIONS)


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveConfig:
    every: int = 100
    """Steps between checkpoints; 0 writes one only at the end and when a run is stopped."""
    keep: int = 2
    """How many states are kept. The LoRA of each checkpoint stays."""

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def __post_init__(self) -> None:
        _check(self.every >= 0, f"every is {self.every}; choose 0 (only at the end) or more steps")
        _check(self.keep >= 1, f"keep is {self.keep}; choose 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig:
    """Sample pictures while a run goes on. They change nothing in the weights."""

    prompts: tuple[str, ...] = ()
    """One picture each; none means no previews."""
    negative: str = ""
    every: int = 100
    """Steps between previews. Step 0, the untouched model, and the last step are always shown."""
    seed: int = 0
    """Of the first prompt's picture; the next ones count up. The same at every step."""
    steps: int = 20
    cfg: float = 7.0
    sampler_name: str = "euler"
    scheduler: str = "normal"
    width: int = 0
    """Pixels; 0 is the resolution of the dataset."""
    height: int = 0

    def __post_init__(self) -> None:
        _check(self.every >= 1, f"every is {self.every}; choose 1 or more steps between previews")
        _check(1 <= self.steps <= 1000, f"sampling steps is {self.steps}; choose 1 to 1000 (20 is usual)")
        _check(0 <= self.cfg <= 100, f"cfg is {self.cfg}; choose 0 to 100")
        _check(0 <= self.seed < 2**64, f"seed is {self.seed}; choose 0 to 2^64 - 1")
        for name in ("width", "height"):
            value = getattr(self, name)
            _check(0 <= value <= 8192, f"{name} is {value}; choose 0 (the dataset's resolution) to 8192")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """The loss on pictures that are not trained on."""

    held_out: int = 0
    """Pictures of the dataset that are kept out of training; 0 is no validation."""
    every: int = 50
    """Steps between measurements. Step 0 and the last step are always measured."""
    keep_best: bool = False
    """The result is the LoRA of the step with the lowest held-out loss instead of the last step's."""
    patience: int = 0
    """Stop after this many measurements without a new lowest loss; 0 never stops early."""

    def __post_init__(self) -> None:
        _check(self.held_out >= 0, f"held_out is {self.held_out}; choose 0 (no validation) or more pictures")
        _check(self.every >= 1, f"every is {self.every}; choose 1 or more steps between measurements")
        _check(self.patience >= 0, f"patience is {self.patience}; choose 0 (never stop early) or more")
        for name in ("keep_best", "patience"):
            value = getattr(self, name)
            _check(
                self.held_out > 0 or not value,
                f"{name} is {value} but held_out is 0, so nothing is measured; hold out one or more pictures",
            )


_FORMER = {("data", "digest")}
"""(section, field) that files of earlier versions have. The dataset's digest is in run.json now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    name: str = "my_lora"
    steps: int = 1000
    """Optimizer steps. With `epochs`, the steps follow from the dataset."""
    epochs: int = 0
    """Passes over the dataset; 0 means that `steps` counts."""
    seed: int = 0
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_name(self.name))
        _check(1 <= self.steps <= 1_000_000, f"steps is {self.steps}; choose 1 to 1000000")
        _check(0 <= self.epochs <= 100_000, f"epochs is {self.epochs}; choose 0 (count steps) to 100000")
        _check(0 <= self.seed < 2**64, f"train_seed is {self.seed}; choose 0 to 2^64 - 1")

    def total_steps(self, samples: int) -> int:
        """Optimizer steps of the run; an epoch of N samples has ceil(N / (batch · accumulation)) of them."""
        if not self.epochs:
            return self.steps
        return self.epochs * -(-samples // (self.data.batch_size * self.optimizer.accumulation))

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
