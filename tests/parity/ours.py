"""Our side: ComfyUI's model, borrowed, with the pack's conditioning, objective and adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor

from in_graph_lora.trainer.adapters.inject import Adapter, injected
from in_graph_lora.trainer.config import AdapterConfig, ObjectiveConfig
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.model import HostDenoiser, borrowed
from in_graph_lora.trainer.loss import element_loss, sample_loss
from in_graph_lora.trainer.noise import add_noise
from in_graph_lora.trainer.timesteps import sigma_from_uniform

from .case import GUIDANCE, RANK, Case, Numbers, draw, random_weights
from .result import Result

PREFIX = "model.diffusion_model."
TARGETS = "attention+feed-forward"


def model_of(case: Case) -> Any:
    """ComfyUI's model, its weights not set."""
    config = getattr(comfy.supported_models, case.row.config)(dict(case.row.unet))
    config.set_inference_dtype(torch.float32, None)
    return config.get_model(dict(case.row.markers), "")


def patcher_of(model: Any) -> Any:
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)


def noise_levels(case: Case, u: Tensor) -> Tensor:
    """What a run draws by default for the uniform numbers u."""
    with borrowed(patcher_of(model_of(case))) as denoiser:
        return sigma_from_uniform(u, ObjectiveConfig(), denoiser.process, math.prod(case.row.latent[1:]) / 4)


def build(case: Case) -> tuple[Any, dict[str, Tensor]]:
    """ComfyUI's patcher and the weights in it, under the names of a checkpoint."""
    model = model_of(case)
    weights = random_weights(model.diffusion_model.state_dict())
    named = {PREFIX + k: v for k, v in weights.items()}
    if case.row.from_file:
        patcher = comfy.sd.load_diffusion_model_state_dict(
            {k: v.clone() for k, v in named.items()} | case.row.markers,
            model_options={"dtype": torch.float32},
        )
        assert type(patcher.model.model_config).__name__ == case.row.config
        assert {k: v.shape for k, v in patcher.model.diffusion_model.state_dict().items()} == {
            k: v.shape for k, v in weights.items()
        }
    else:
        missing, unexpected = model.diffusion_model.load_state_dict(weights)
        assert not missing
        assert not unexpected
        patcher = patcher_of(model)
    return patcher, named


class GivenText:
    """Stands in for the CLIP of the graph: the caption is the row of the given embeddings."""

    def __init__(self, case: Case, numbers: Numbers) -> None:
        self.case, self.numbers = case, numbers

    def tokenize(self, text: str) -> int:
        return int(text)

    def encode_from_tokens_scheduled(self, row: int, show_pbar: bool = True) -> list[Any]:
        one = self.numbers.alone(row)
        extra: dict[str, Any] = {}
        if self.case.pooled:
            extra["pooled_output"] = one.pooled
        if self.case.text_mask:
            extra["attention_mask"] = torch.ones(one.text.shape[:2], dtype=torch.long)
        return [[one.text, extra]]


def run(case: Case, patcher: Any, tokens: Sequence[int]) -> tuple[Numbers, Result]:
    with borrowed(patcher) as denoiser:
        assert denoiser.process.prediction == case.prediction
        assert denoiser.half_precision is None
        numbers = draw(case, denoiser.process.sigmas, tokens)
        with injected(denoiser.net, AdapterConfig(rank=RANK, targets=TARGETS), seed=1) as adapter:
            _randomise_b(adapter)
            return numbers, _loss_and_gradients(case, denoiser, adapter, numbers)


def _randomise_b(adapter: Adapter) -> None:
    g = torch.Generator().manual_seed(2)
    for layer in adapter.layers.values():
        b = layer.lora_B["default"].weight
        b.data = 0.1 * torch.randn(b.shape, generator=g)


def _loss_and_gradients(case: Case, denoiser: HostDenoiser, adapter: Adapter, numbers: Numbers) -> Result:
    encoder = HostTextEncoder(GivenText(case, numbers), denoiser.patcher, GUIDANCE)
    conditioning = [encoder.encode(str(i), x) for i, x in enumerate(numbers.x_0)]
    noised = add_noise(denoiser.process, numbers.x_0, numbers.noise, numbers.sigma)
    output = denoiser.predict(noised.x_t, noised.sigma, conditioning)
    threshold = torch.ones_like(numbers.sigma)  # of the Huber loss, which the default config does not use
    loss = sample_loss(element_loss(ObjectiveConfig(), output, noised.target, threshold), None)
    loss.mean().backward()
    return Result(
        target=noised.target,
        loss=loss.detach(),
        weights={n: _pair(layer, grad=False) for n, layer in adapter.layers.items()},
        gradients={n: _pair(layer, grad=True) for n, layer in adapter.layers.items()},
    )


def _pair(layer: Any, *, grad: bool) -> tuple[Tensor, Tensor]:
    pair = []
    for part in (layer.lora_A, layer.lora_B):
        p = part["default"].weight
        value = p.grad if grad else p
        pair.append(torch.zeros_like(p) if value is None else value.detach().clone())
    return pair[0], pair[1]
