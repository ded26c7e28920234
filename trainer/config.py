"""What a run is told: frozen, keyword-only, checked once.

`TrainConfig` is written as JSON beside every result and read back with `TrainConfig.from_dict`.
A misspelt field is a TypeError; a value out of range is a `ConfigError` that names the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .options.adapter import ADAPTER_FILE_NAMES, ADAPTER_INITS, ADAPTER_KINDS, AdapterConfig
from .options.checks import RESERVED_NAMES, check_name, check_range, demand
from .options.data import CAPTION_SYNTAXES, EDIT_NODES, DataConfig
from .options.embedding import NO_EMBEDDING_NAME, EmbeddingConfig
from .options.memory import AS_LOADED, BASE_PRECISIONS, FITS, PRECISIONS, MemoryConfig
from .options.objective import (
    HUBER_SCHEDULES,
    LOSSES,
    PRIOR_METHODS,
    TIMESTEP_SAMPLINGS,
    WEIGHTINGS,
    ObjectiveConfig,
    PriorConfig,
)
from .options.optimizer import OPTIMIZERS, SCHEDULES, OptimizerConfig
from .options.results import BY_JUDGE, BY_LOSS, DECIDES, PreviewConfig, SaveConfig, ValidationConfig

__all__ = [
    "ADAPTER_FILE_NAMES",
    "ADAPTER_INITS",
    "ADAPTER_KINDS",
    "AS_LOADED",
    "AdapterConfig",
    "BASE_PRECISIONS",
    "BY_JUDGE",
    "BY_LOSS",
    "CAPTION_SYNTAXES",
    "DECIDES",
    "DataConfig",
    "EDIT_NODES",
    "EmbeddingConfig",
    "FITS",
    "HUBER_SCHEDULES",
    "LOSSES",
    "MemoryConfig",
    "OPTIMIZERS",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PRECISIONS",
    "PRIOR_METHODS",
    "PreviewConfig",
    "PriorConfig",
    "RESERVED_NAMES",
    "SCHEDULES",
    "SaveConfig",
    "TIMESTEP_SAMPLINGS",
    "ValidationConfig",
    "WEIGHTINGS",
    "check_name",
    "TrainConfig",
]

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
        check_range(self, 1, 1_000_000, "steps")
        check_range(self, 0, 100_000, "epochs", hint="0: steps count")
        demand(0 <= self.seed < 2**64, f"train_seed is {self.seed}; choose 0 to 2^64 - 1")
        demand(
            bool(self.preview.prompts or not self.validation.judge),
            "there is a judge but no pictures for it; write a line into prompts (Train Preview)",
        )

    def _check_embedding(self) -> None:
        demand(
            bool(self.embedding.placeholder),
            "placeholder is empty and the dataset has no trigger word; set it to the word that stands for"
            " your subject in the captions (Textual Inversion)",
        )
        demand(
            not NO_EMBEDDING_NAME.search(self.name),
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
            demand(
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

    def in_each_of(self, processes: int) -> TrainConfig:
        """What one of so many processes has of it at most: they share each step's samples."""
        own = -(-self.data.batch_size * self.optimizer.accumulation // processes)
        batch = min(self.data.batch_size, own)
        return replace(
            self,
            data=replace(self.data, batch_size=batch),
            optimizer=replace(self.optimizer, accumulation=-(-own // batch)),
        )

    def check_shared(self, processes: int) -> None:
        """Raises ConfigError where some of so many processes had nothing to do."""
        size, accumulation = self.data.batch_size, self.optimizer.accumulation
        demand(
            size * accumulation >= processes,
            f"{processes} processes share the {size * accumulation} pictures of a step (batch_size {size} ×"
            f" accumulation {accumulation}), so some have nothing to do; raise batch_size to {processes} or"
            " start fewer",
        )

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
