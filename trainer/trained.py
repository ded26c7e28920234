"""What a run trains: adapters with their names in the file, and the vectors of a word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from .adapters.inject import Adapter, injected
from .adapters.lora_file import file_tensors
from .adapters.names import FileName
from .adapters.start import StartingLora
from .config import AdapterConfig, TrainConfig
from .data.batches import CachedSample
from .embedding import Embedding
from .memory.checkpointing import checkpointed
from .memory.compiling import compiled
from .memory.offloading import offloaded
from .memory.streaming import streamed
from .objective import Objective, cached_condition
from .optim import ParameterGroups
from .own_loss import LossFunction
from .ports import Conditioning, Loan
from .rules import expressions_of

TEXT_TARGETS = "attention+feed-forward"
"""Layers of a text encoder that kohya's trainers adapt."""


def for_text_encoder(adapter: AdapterConfig) -> AdapterConfig:
    """The same adapter on a text encoder, which has none of the diffusion model's blocks."""
    return replace(
        adapter,
        targets=TEXT_TARGETS,
        hold_first_token=False,
        blocks="",
        rank_by_block=expressions_of(adapter.rank_by_block),
        lr_by_block=expressions_of(adapter.lr_by_block),
    )


FileNames = Callable[[Iterable[str]], Mapping[str, FileName]]
"""Layers → their names in the file."""


@dataclass
class Trained:
    """All that a run trains, and what to tell the optimizer of it."""

    adapters: list[tuple[Adapter, FileNames]] = field(default_factory=list)
    embedding: Embedding | None = None
    groups: ParameterGroups = field(default_factory=list)

    def add(self, adapter: Adapter, names: FileNames, lr: float, lora_plus_ratio: float) -> None:
        self.adapters.append((adapter, names))
        self.groups += adapter.parameter_groups(lr, lora_plus_ratio)

    def add_embedding(self, embedding: Embedding, lr: float) -> None:
        self.embedding = embedding
        self.groups += embedding.parameter_groups(lr)

    @property
    def _parts(self) -> dict[str, Adapter | Embedding]:
        """Beginning of the names in a state → whose they are."""
        parts: dict[str, Adapter | Embedding] = {
            f"adapter.{i}.": adapter for i, (adapter, _) in enumerate(self.adapters)
        }
        return parts if self.embedding is None else {**parts, "embedding.": self.embedding}

    def state_dict(self) -> dict[str, Tensor]:
        return {
            start + key: tensor
            for start, part in self._parts.items()
            for key, tensor in part.state_dict().items()
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for start, part in self._parts.items():
            part.load_state_dict(
                {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
            )

    def file_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for adapter, names in self.adapters:
            tensors |= file_tensors(adapter, names(adapter.layers))
        return tensors | (self.embedding.file_tensors() if self.embedding else {})


@contextmanager
def prepared(
    loan: Loan,
    config: TrainConfig,
    names: FileNames,
    text_names: FileNames | None,
    start: StartingLora | None,
    own_loss: LossFunction | None = None,
) -> Iterator[tuple[Trained, Objective]]:
    """Adapters in, blocks compiled and checkpointed, for the length of the block."""
    denoiser, text = loan.denoiser, loan.text
    memory, optimizer, trained = config.memory, config.optimizer, Trained()
    with ExitStack() as stack:
        adapter = Adapter(config.adapter)
        if config.trains_lora:
            adapter = stack.enter_context(
                injected(
                    denoiser.net,
                    config.adapter,
                    seed=config.seed,
                    compute_dtype=denoiser.half_precision,
                    device=denoiser.device,
                    start=start,
                )
            )
            trained.add(adapter, names, optimizer.learning_rate, optimizer.lora_plus_ratio)
        offload = stack.enter_context(offloaded(denoiser.device, memory.offload_activations))
        condition_of = cached_condition
        if text is not None:
            if optimizer.text_encoder_lr:
                assert text_names is not None
                text_adapter = stack.enter_context(
                    injected(
                        text.net,
                        for_text_encoder(config.adapter),
                        seed=config.seed,
                        compute_dtype=text.half_precision,
                        purpose="text encoder init",
                    )
                )
                trained.add(text_adapter, text_names, optimizer.text_encoder_lr, optimizer.lora_plus_ratio)
            if (own := config.embedding).vectors:
                vectors = text.embed(own.placeholder, own.initial_word, own.vectors)
                trained.add_embedding(Embedding(own.placeholder, vectors), own.learning_rate)
            stack.enter_context(checkpointed(text.blocks, memory.checkpointing, offload=offload))

            def condition_of(sample: CachedSample, dropped: bool) -> Conditioning:
                caption = "" if dropped else sample.caption
                return text.condition(caption, sample.latent, sample.references, view=sample.view)

        if memory.compile:
            stack.enter_context(compiled(denoiser.blocks))
        stack.enter_context(streamed(denoiser.away, denoiser.device))
        away = [packed.block for packed in denoiser.away]
        stack.enter_context(checkpointed(denoiser.blocks, memory.checkpointing, always=away, offload=offload))
        yield (
            trained,
            Objective(
                config=config.objective,
                prior=config.prior,
                denoiser=denoiser,
                adapter=adapter,
                condition_of=condition_of,
                embedding=trained.embedding,
                own_loss=own_loss,
            ),
        )
