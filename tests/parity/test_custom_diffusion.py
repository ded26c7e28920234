"""Custom Diffusion as diffusers' script `train_custom_diffusion.py` does it, on the same weights.

There copies of to_k and to_v of the cross-attention are trained whole in diffusers' own attention processor,
which gives the first token no gradient; class pictures are the second half of the batch, their loss is added.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, CustomDiffusionAttnProcessor
from torch import Tensor, nn

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.config import AdapterConfig, ObjectiveConfig
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.loss import element_loss, sample_loss
from in_graph_lora.trainer.noise import add_noise

from . import ours, theirs
from .case import Case, Numbers, draw
from .families import CASES

CLOSE = 1e-5
CUSTOM = AdapterConfig(kind="full", targets="kv", hold_first_token=True)
Gradients = dict[str, Tensor]
"""Layer of ComfyUI's network → ∂L/∂ΔW [out, in]"""


def train_ours(
    case: Case, patcher: Any, config: AdapterConfig, change: dict[str, Tensor]
) -> tuple[Numbers, float, Gradients]:
    """change: filled with the ΔW that the step begins with."""
    with borrowed(patcher) as denoiser, injected(denoiser.net, config, seed=1) as adapter:
        numbers = draw(case, denoiser.process.sigmas, (7, 7))
        g = torch.Generator().manual_seed(2)
        for name, layer in adapter.layers.items():
            diff: Any = layer.diff
            diff.data = 0.02 * torch.randn(diff.shape, generator=g)
            change[name] = diff.detach().clone()
        encoder = HostTextEncoder(ours.GivenText(case, numbers), denoiser.patcher, 1.0)
        conditioning = [encoder.encode(str(i), x) for i, x in enumerate(numbers.x_0)]
        noised = add_noise(denoiser.process, numbers.x_0, numbers.noise, numbers.sigma)
        output = denoiser.predict(noised.x_t, noised.sigma, conditioning)
        threshold = torch.ones_like(numbers.sigma)
        losses = sample_loss(element_loss(ObjectiveConfig(), output, noised.target, threshold), None)
        loss = losses.sum()  # instance + 1.0 · class, a picture each
        loss.backward()
        return numbers, loss.item(), {n: m.diff.grad.clone() for n, m in adapter.layers.items()}


def train_theirs(
    case: Case, weights: dict[str, Tensor], numbers: Numbers, change: dict[str, Tensor]
) -> tuple[float, Gradients]:
    """As the script has it: `freeze_model crossattn_kv`, `with_prior_preservation`."""
    unet: Any = case.theirs({k: v.clone() for k, v in weights.items()}).eval().requires_grad_(False)
    rows = theirs.corresponding(weights, unet, list(change))
    processors: dict[str, nn.Module | AttnProcessor] = {}
    for name in unet.attn_processors:
        processors[name] = AttnProcessor()
        if ".attn2." not in name:
            continue
        attention = unet.get_submodule(name.removesuffix(".processor"))
        width, text_width = attention.to_k.weight.shape
        own = CustomDiffusionAttnProcessor(
            train_kv=True, train_q_out=False, hidden_size=width, cross_attention_dim=text_width
        )
        own.to_k_custom_diffusion.weight.data = attention.to_k.weight.clone()
        own.to_v_custom_diffusion.weight.data = attention.to_v.weight.clone()
        processors[name] = own
    unet.set_attn_processor(dict(processors))
    trained = {}
    for layer, parts in rows.items():
        (name,) = parts
        attention, which = name.rsplit(".", 1)
        copied = getattr(processors[f"{attention}.processor"], f"{which}_custom_diffusion")
        copied.weight.data += change[layer]
        trained[layer] = copied.weight
    assert len(trained) == 2 * sum(isinstance(p, CustomDiffusionAttnProcessor) for p in processors.values())
    noisy = theirs.ddpm().add_noise(numbers.x_0, numbers.noise, numbers.t)
    prediction = unet(noisy, numbers.t, numbers.text).sample
    instance, class_ = prediction.chunk(2)
    target, target_class = numbers.noise.chunk(2)
    mask = torch.ones_like(instance[:, :1])
    loss = nn.functional.mse_loss(instance.float(), target.float(), reduction="none")
    loss = ((loss * mask).sum([1, 2, 3]) / (mask.sum([1, 2, 3]) * loss.shape[1])).mean()
    loss = loss + 1.0 * nn.functional.mse_loss(class_.float(), target_class.float(), reduction="mean")
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}


@pytest.fixture(scope="module")
def sd15() -> tuple[Case, Any, dict[str, Tensor]]:
    case = next(c for c in CASES if c.row.name == "sd15")
    return case, *ours.build(case)


def test_loss_and_gradients_of_keys_and_values_equal_diffusers_attention_processor(sd15: Any) -> None:
    case, patcher, weights = sd15
    change: dict[str, Tensor] = {}
    numbers, loss, gradients = train_ours(case, patcher, CUSTOM, change)
    their_loss, wanted = train_theirs(case, weights, numbers, change)
    assert abs(loss - their_loss) < CLOSE * their_loss
    assert gradients.keys() == wanted.keys()
    for layer, gradient in gradients.items():
        assert (gradient - wanted[layer]).norm() < CLOSE * wanted[layer].norm(), layer


def test_without_holding_the_first_token_the_gradients_are_others(sd15: Any) -> None:
    """So that the test above can fail."""
    case, patcher, weights = sd15
    change: dict[str, Tensor] = {}
    free = AdapterConfig(kind="full", targets="kv")
    numbers, loss, gradients = train_ours(case, patcher, free, change)
    their_loss, wanted = train_theirs(case, weights, numbers, change)
    assert abs(loss - their_loss) < CLOSE * their_loss
    assert any((g - wanted[n]).norm() > 0.01 * wanted[n].norm() for n, g in gradients.items())
