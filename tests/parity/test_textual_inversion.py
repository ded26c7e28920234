"""Textual Inversion as diffusers' script `textual_inversion.py` does it, on the same weights.

There the new tokens are rows of the table of token embeddings; all of it is optimised, and the other rows are
put back after each step.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from in_graph_lora.trainer.config import EmbeddingConfig, MemoryConfig, OptimizerConfig, TrainConfig
from in_graph_lora.trainer.data.batches import CachedSample, MicroBatch
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.model import borrowed
from in_graph_lora.trainer.host.text_model import borrowed_clip
from in_graph_lora.trainer.loop import TrainState, train_step
from in_graph_lora.trainer.objective import Drawn
from in_graph_lora.trainer.ports import Loan
from in_graph_lora.trainer.trained import prepared
from in_graph_lora.trainer.updater import Updater

from . import ours, theirs
from .case import Case, random_weights
from .families import CASES

WORD, INITIAL, VECTORS, STEPS = "<my-cat>", "cat", 3, 4
CAPTIONS = ("a photo of a <my-cat> in a box", "<my-cat>")
SIZES = {"num_hidden_layers": 2, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 512}
RATE, DECAY = 1e-2, 1e-2


@dataclass
class Step:
    """x_0 and noise [B, C, H, W], diffusers' timestep [B]; what came of them."""

    noise: Tensor
    t: Tensor
    loss: float
    gradient: Tensor
    rows: Tensor


def text_encoder() -> Any:
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    options = {"dtype": torch.float32, "clip_l_model_config": SIZES}
    clip = comfy.sd.CLIP(target, embedding_directory=[], model_options=options)
    net = clip.cond_stage_model
    net.load_state_dict({k: v for k, v in random_weights(net.state_dict()).items()})
    return clip


def their_text_encoder(weights: Mapping[str, Tensor]) -> CLIPTextModel:
    config = CLIPTextConfig(**SIZES, vocab_size=49408, hidden_act="quick_gelu", eos_token_id=49407)
    net = CLIPTextModel(config).eval().requires_grad_(False)
    own = net.state_dict()
    prefix = (
        "clip_l.transformer."
        if any(k.startswith("text_model.") for k in own)
        else "clip_l.transformer.text_model."
    )
    net.load_state_dict(
        {k: weights[prefix + k].clone() for k in own if not k.endswith("position_ids")}, strict=False
    )
    return net


def train_ours(case: Case, patcher: Any, clip: Any, latents: Tensor) -> list[Step]:
    config = TrainConfig(
        embedding=EmbeddingConfig(
            placeholder=WORD, initial_word=INITIAL, vectors=VECTORS, learning_rate=RATE
        ),
        optimizer=OptimizerConfig(weight_decay=DECAY, schedule="constant", warmup_steps=0, max_grad_norm=0),
    )
    samples = [
        CachedSample(latent=x, conditioning=None, key=str(i), caption=caption)
        for i, (x, caption) in enumerate(zip(latents, CAPTIONS, strict=True))
    ]
    steps: list[Step] = []
    texts = HostTextEncoder(clip, patcher)
    with (
        borrowed(patcher, MemoryConfig(fit="manual")) as denoiser,
        borrowed_clip(texts) as text,
        prepared(Loan(denoiser=denoiser, text=text), config, dict, None, None) as (trained, objective),
    ):
        assert trained.embedding is not None
        vectors = trained.embedding.vectors["clip_l"]
        updater = Updater(trained.groups, config, STEPS, fp16=False)
        drawn: list[Drawn] = []
        draw, step = objective.with_draws, updater.step
        object.__setattr__(objective, "with_draws", lambda *a: drawn.append(draw(*a)) or drawn[-1])
        gradients: list[Tensor] = []

        def updated(loss: Tensor) -> Any:
            assert vectors.grad is not None
            gradients.append(vectors.grad.clone())
            return step(loss)

        updater.step = updated  # type: ignore[method-assign]
        batches = itertools.repeat(MicroBatch(samples=samples))
        state = TrainState()
        for _ in range(STEPS):
            result = train_step(
                objective, updater, batches, state, seed=0, accumulation=1, check_interrupt=lambda: None
            )
            state.advance(result)
            noised = drawn[-1].noised
            t = (denoiser.process.sigmas[None] - noised.sigma[:, None]).abs().argmin(1)
            steps.append(Step(noised.target, t, result.loss, gradients[-1], vectors.detach().clone()))
    return steps


def train_theirs(
    case: Case, weights: dict[str, Tensor], clip: Any, latents: Tensor, given: list[Step]
) -> list[Step]:
    unet = case.theirs({k: v.clone() for k, v in weights.items()}).eval().requires_grad_(False)
    encoder = their_text_encoder(clip.cond_stage_model.state_dict())
    tokenizer = copy.deepcopy(clip.tokenizer.clip_l.tokenizer)
    # A token of several vectors is several tokens there: `<my-cat> <my-cat>_1 …`.
    names = [WORD, *(f"{WORD}_{i}" for i in range(1, VECTORS))]
    assert tokenizer.add_tokens(names) == VECTORS
    initial = tokenizer.encode(INITIAL, add_special_tokens=False)
    assert len(initial) == 1
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    ids = tokenizer.convert_tokens_to_ids(names)
    with torch.no_grad():
        for row in ids:
            table[row] = table[initial[0]].clone()
    table.requires_grad_(True)
    optimizer = torch.optim.AdamW([table], lr=RATE, betas=(0.9, 0.999), weight_decay=DECAY, eps=1e-8)
    original = table.detach().clone()
    texts = [caption.replace(WORD, " ".join(names)) for caption in CAPTIONS]
    prompt = tokenizer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    assert (prompt == ids[-1]).sum() == len(CAPTIONS)
    scheduler, steps = theirs.ddpm(), []
    for one in given:
        noisy = scheduler.add_noise(latents, one.noise, one.t)
        prediction = unet(noisy, one.t, encoder(prompt)[0]).sample
        loss = nn.functional.mse_loss(prediction.float(), one.noise.float(), reduction="mean")
        loss.backward()
        assert table.grad is not None
        gradient = table.grad[ids].clone()
        optimizer.step()
        optimizer.zero_grad()
        others = torch.ones(len(tokenizer), dtype=torch.bool)
        others[ids] = False
        with torch.no_grad():
            table[others] = original[others]
        steps.append(Step(one.noise, one.t, loss.item(), gradient, table[ids].detach().clone()))
    return steps


def test_losses_gradients_and_vectors_equal_diffusers_script_over_some_steps() -> None:
    case = next(c for c in CASES if c.row.name == "sd15")
    patcher, weights = ours.build(case)
    clip = text_encoder()
    latents = torch.randn(len(CAPTIONS), *case.row.latent, generator=torch.Generator().manual_seed(0))
    mine = train_ours(case, patcher, clip, latents)
    wanted = train_theirs(case, weights, clip, latents, mine)
    assert len({a.loss for a in mine}) == STEPS
    for a, b in zip(mine, wanted, strict=True):
        assert abs(a.loss - b.loss) < 1e-5 * b.loss
        assert (a.gradient - b.gradient).norm() < 1e-5 * b.gradient.norm()
        assert (a.rows - b.rows).norm() < 1e-5 * b.rows.norm()
    assert (mine[-1].rows - mine[0].rows).abs().max() > RATE
