"""The trainers, each with its own loop, on the same weights and data.

A trainer is a class that loads the model when it is made; `forward()` sends one batch through the
network without gradient and adapter, also between the steps; `train()` trains and says what was adapted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from comfy_extras.nodes_train import TrainLoraNode
from diffusers import DDPMScheduler
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from in_graph_lora.trainer.config import AdapterConfig, DataConfig, MemoryConfig, TrainConfig
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.data.cache import TrainingData
from in_graph_lora.trainer.events import Event, RunStarted
from in_graph_lora.trainer.host import lora
from in_graph_lora.trainer.host.base_precision import available
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.model import HostDenoiser, borrowed
from in_graph_lora.trainer.host.planning import free_on
from in_graph_lora.trainer.measure import measure
from in_graph_lora.trainer.memory.report import levers, planned
from in_graph_lora.trainer.ports import Loan
from in_graph_lora.trainer.runs.placing import Places
from in_graph_lora.trainer.session import Destination, train_lora

from .meter import Rings
from .models import MODELS, Model, loaded, loaded_in_diffusers


@dataclass(frozen=True, kw_only=True)
class Job:
    model: str
    resolution: int
    batch: int
    steps: int
    rank: int
    options: dict[str, Any]
    """The trainer's own, other than its defaults."""

    @property
    def network(self) -> Model:
        return MODELS[self.model]


@dataclass(frozen=True)
class Adapted:
    layers: int
    parameters: int


class Data:
    """As many samples as the batch has rows: latents and text embeddings of the model's shapes."""

    def __init__(self, job: Job) -> None:
        g = torch.Generator().manual_seed(1)
        m = job.network
        self.latents = torch.randn(m.latent(job.batch, job.resolution), generator=g)
        self.text = torch.randn(job.batch, *m.text, generator=g)
        self.pooled = torch.randn(job.batch, m.pooled, generator=g) if m.pooled else None

    def condition(self, row: int) -> list[Any]:
        """ComfyUI's CONDITIONING of one sample."""
        pooled = {} if self.pooled is None else {"pooled_output": self.pooled[[row]]}
        return [self.text[[row]], pooled]


@contextmanager
def without_adapters(net: nn.Module) -> Iterator[None]:
    layers = [m for m in net.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    yield
    for layer in layers:
        layer._disable_adapters = False


class _OnLoaded:
    """ComfyUI's model, as a loader node gives it."""

    def __init__(self, job: Job) -> None:
        self.job, self.data = job, Data(job)
        self.patcher = loaded(job.model)
        self.net = type(self.patcher.model.diffusion_model)
        self.device = self.patcher.load_device

    @cached_property
    def samples(self) -> list[CachedSample]:
        texts = HostTextEncoder(_Texts(self.data), self.patcher, guidance=1.0)
        return [
            CachedSample(latent=x, conditioning=texts.encode(str(i), x), key=str(i))
            for i, x in enumerate(self.data.latents)
        ]

    def forward(self) -> None:
        with torch.inference_mode(False), borrowed(self.patcher) as denoiser:
            self._pass(denoiser)

    @torch.no_grad()
    def _pass(self, denoiser: HostDenoiser) -> None:
        x = self.data.latents.to(self.device)
        sigma = denoiser.process.sigmas[[500] * len(x)].to(self.device)
        with without_adapters(denoiser.net):
            denoiser.predict(x, sigma, [s.conditioning for s in self.samples])


class _Texts:
    """Stands in for the CLIP of the graph: the caption is the number of a row."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def tokenize(self, text: str) -> int:
        return int(text)

    def encode_from_tokens_scheduled(self, row: int, show_pbar: bool = True) -> list[Any]:
        return [self.data.condition(row)]


class Ours(_OnLoaded):
    _training: HostDenoiser | None = None
    plan: dict[str, Any] | None = None
    """What was chosen with fit auto, and predicted."""

    @cached_property
    def config(self) -> TrainConfig:
        job = self.job
        return TrainConfig(
            name="bench",
            steps=job.steps,
            adapter=AdapterConfig(rank=job.rank, targets=job.options.get("targets", "attention")),
            data=DataConfig(batch_size=job.batch),
            memory=MemoryConfig(**{"fit": "manual", **job.options.get("memory", {})}),
        )

    @contextmanager
    def lend(self, memory: MemoryConfig) -> Iterator[Loan]:
        with borrowed(self.patcher, memory) as denoiser:
            self._training = denoiser
            yield Loan(denoiser=denoiser)
        self._training = None

    def forward(self) -> None:
        if self._training is None:
            super().forward()
        else:
            self._pass(self._training)

    def prepare(self) -> None:
        """With fit auto: choose the levers as a run does. The step that is tried out streams every block."""
        if self.config.memory.fit == "manual":
            return
        tried = MemoryConfig(fit="manual", checkpointing=1, streamed=1.0)
        with torch.inference_mode(False), self.lend(tried) as loan:
            measured = measure(loan, self.config, self.samples, check_interrupt=lambda: None)
        need = planned(measured, self.config.memory, free_on(self.patcher), tuple(available()))
        self.plan = {"levers": levers(need.memory), "device": need.device, "seconds": need.seconds}
        self.config = replace(self.config, memory=need.memory)

    def train(self) -> Adapted:
        job, config, started = self.job, self.config, []

        def emit(event: Event) -> None:
            if isinstance(event, RunStarted):
                started.append(event)

        with (
            tempfile.TemporaryDirectory() as folder,
            torch.inference_mode(),
            torch.inference_mode(False),
            Rings() as self.rings,
        ):
            destination = Destination(
                places=Places(loras=Path(folder) / "loras", embeddings=Path(folder) / "embeddings"),
                runs=Path(folder, "runs"),
                base_model=job.model,
                file_names=lambda layers: lora.file_names(self.patcher, layers),
            )
            data = TrainingData(samples=self.samples, class_samples=[])
            train_lora(
                *(self.lend, data, config, destination),
                steps=config.steps,
                emit=emit,
                check_interrupt=lambda: None,
            )
        return Adapted(started[0].layers, started[0].parameters)


class Core(_OnLoaded):
    """The node's class, called as ComfyUI's executor calls it: every input is a list."""

    def train(self) -> Adapted:
        job, data = self.job, self.data
        schema = TrainLoraNode.GET_SCHEMA()
        inputs = {i.id: i.default for i in schema.inputs if hasattr(i, "default")}
        inputs |= {"steps": job.steps, "batch_size": job.batch, "rank": job.rank, **job.options}
        with torch.inference_mode():
            out = TrainLoraNode.execute(
                model=[self.patcher],
                latents=[{"samples": data.latents}],
                positive=[[data.condition(i)] for i in range(job.batch)],
                **{name: [value] for name, value in inputs.items() if name not in _LINKS},
            )
        tensors = out.result[0]
        return Adapted(
            len({name.rsplit(".", 1)[0] for name in tensors}), sum(t.numel() for t in tensors.values())
        )


_LINKS = ("model", "latents", "positive")


class Diffusers:
    """The loop of diffusers' LoRA scripts: its network, peft, AdamW, clipping."""

    def __init__(self, job: Job) -> None:
        self.job, self.data = job, Data(job)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.half = torch.bfloat16 if self.device.type == "cuda" else None
        self.unet = loaded_in_diffusers(job.model, self.half or torch.float32, self.device)
        self.net = type(self.unet)
        self.text, self.latents = self.data.text.to(self.device), self.data.latents.to(self.device)
        self.scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)

    def forward(self) -> None:
        with torch.no_grad(), self._autocast(), without_adapters(self.unet):
            t = torch.full((self.job.batch,), 500, device=self.device)
            self._predict(self.latents, t)

    def train(self) -> Adapted:
        rank, net = self.job.rank, self.unet
        targets = self.job.options.get("targets", self.job.network.attention)
        if targets == "all":
            targets = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        lora_config = LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets
        )
        if self.job.options.get("checkpointing"):
            net.enable_gradient_checkpointing()
        net.add_adapter(lora_config)
        cast_training_params(net, torch.float32)
        net.train()
        parameters = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
        for _ in range(self.job.steps):
            x_t, t, target = self._noised()
            with self._autocast():
                prediction = self._predict(x_t, t)
            loss = nn.functional.mse_loss(prediction.float(), target.float(), reduction="mean")
            loss.backward()
            loss.item()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        layers = sum(hasattr(m, "lora_A") for m in net.modules())
        adapted = Adapted(layers, sum(p.numel() for p in parameters))
        net.delete_adapters("default")  # the next case gets the network as it was
        return adapted

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.half, enabled=self.half is not None)

    def _noised(self) -> tuple[Tensor, Tensor, Tensor]:
        x, noise = self.latents, torch.randn_like(self.latents)
        if self.job.network.flow:
            sigma = torch.sigmoid(torch.randn(len(x), device=self.device))
            s = sigma.view(-1, *[1] * (x.ndim - 1))
            return (1 - s) * x + s * noise, sigma * 1000, noise - x
        t = torch.randint(1000, (len(x),), device=self.device)
        return self.scheduler.add_noise(x, noise, t), t, noise

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        dtype = self.half or torch.float32
        x, text = x.to(dtype), self.text.to(dtype)
        if self.job.network.config == "Flux":
            return self._predict_flux(x, t, text)
        if self.job.network.config == "QwenImage":
            return self._predict_qwen(x, t, text)
        added = None
        if self.data.pooled is not None:
            side = self.job.resolution
            size = torch.tensor([side, side, 0, 0, side, side], device=self.device)
            added = {
                "text_embeds": self.data.pooled.to(self.device, dtype),
                "time_ids": size.repeat(len(x), 1),
            }
        return self.unet(x, t, text, added_cond_kwargs=added).sample

    def _predict_flux(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        b, c, h, w = x.shape
        assert self.data.pooled is not None
        out = self.unet(
            FluxPipeline._pack_latents(x, b, c, h, w),
            timestep=t / 1000,
            encoder_hidden_states=text,
            pooled_projections=self.data.pooled.to(text),
            guidance=torch.ones_like(t),
            txt_ids=torch.zeros(text.shape[1], 3, device=self.device),
            img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, self.device, x.dtype),
        )[0]
        return FluxPipeline._unpack_latents(out, height=8 * h, width=8 * w, vae_scale_factor=8)

    def _predict_qwen(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        b, c, f, h, w = x.shape
        out = self.unet(
            QwenImagePipeline._pack_latents(x.transpose(1, 2), b, c, h, w),
            timestep=(t / 1000).to(x.dtype),
            encoder_hidden_states=text,
            encoder_hidden_states_mask=torch.ones(text.shape[:2], dtype=torch.long, device=self.device),
            img_shapes=[(f, h // 2, w // 2)] * b,
        )[0]
        return QwenImagePipeline._unpack_latents(out, 8 * h, 8 * w, vae_scale_factor=8)


TRAINERS = {"core": Core, "diffusers": Diffusers, "ours": Ours}
