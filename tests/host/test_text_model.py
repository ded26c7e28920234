"""Gradients through the text encoder of the graph."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import pytest
import torch
from comfy.text_encoders import flux
from safetensors.torch import save_file
from torch import Tensor

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.config import AdapterConfig
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.text_model import HostTextModel, borrowed_clip
from in_graph_lora.trainer.memory.checkpointing import checkpointed

from ..quantised import FORMATS, full, quantised_file
from ..tiny_models import randomise
from .family_case import relative
from .loaded import identities, weight_hash
from .patched import dynamic, mode_of, with_lora

CAPTION = "a (photo:1.2) of a cat"


@pytest.fixture(scope="module")
def clip() -> Any:
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 256}
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    options = {"dtype": torch.float32, "clip_l_model_config": sizes}
    clip = comfy.sd.CLIP(target, model_options=options)
    randomise(clip.cond_stage_model, 0)
    return clip


def texts(clip: Any, syntax: str = "text") -> HostTextEncoder:
    """Without a network: only the text encoder is asked."""
    return HostTextEncoder(clip, None, caption_syntax=syntax)  # type: ignore[arg-type]


def gradients(text: HostTextModel, parameters: list[Any]) -> Tensor:
    for p in parameters:
        p.grad = None
    out = text.encode(CAPTION)
    (out["cross_attn"].square().mean() + out["pooled_output"].sin().mean()).backward()
    return torch.cat([p.grad.flatten() for p in parameters])


def test_a_text_encoder_with_a_lora_on_it_is_trained_under_dynamic_vram_too(clip: Any) -> None:
    found: list[Tensor] = []
    for make in (lambda patcher: patcher, dynamic):
        other = clip.clone()
        with mode_of("dynamic"):
            other.patcher = with_lora(make(clip.patcher))
            for _ in range(2):
                with torch.inference_mode(False), torch.no_grad(), borrowed_clip(texts(other)) as text:
                    found.append(text.encode(CAPTION)["cross_attn"])
            mm.unload_all_models()
    with torch.inference_mode(False), torch.no_grad(), borrowed_clip(texts(clip)) as text:
        without = text.encode(CAPTION)["cross_attn"]
    assert all(relative(each, found[0]) < 1e-5 for each in found)
    assert relative(found[0], without) > 1e-2


def test_gradients_equal_the_oracles_with_and_without_checkpointing(clip: Any) -> None:
    with torch.inference_mode(False), borrowed_clip(texts(clip)) as text:
        assert len(text.blocks) == 3
        with injected(text.net, AdapterConfig(rank=2), seed=1) as adapter:
            g = torch.Generator().manual_seed(3)
            for p in adapter.parameters():
                p.data = 0.2 * torch.randn(p.shape, generator=g)
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                right = gradients(text, adapter.parameters())
            assert (right != 0).all()
            assert relative(gradients(text, adapter.parameters()), right) < 1e-5
            with checkpointed(text.blocks, 1):
                assert relative(gradients(text, adapter.parameters()), right) < 1e-5


SMALL = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
TARGETS = {
    "SDXL": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel, {"clip_l", "clip_g"}),
    "Flux": (flux.FluxTokenizer, flux.flux_clip(dtype_t5=torch.float32), {"clip_l", "t5xxl"}),
}


@pytest.mark.parametrize("family", TARGETS)
def test_each_text_encoder_has_vectors_of_its_own_whose_file_gives_what_was_trained(
    family: str, tmp_path: Path
) -> None:
    tokenizer, model, names = TARGETS[family]
    t5 = {"d_model": 48, "d_ff": 64, "d_kv": 24, "num_heads": 2, "num_layers": 2}
    sizes = {"clip_l_model_config": SMALL, "clip_g_model_config": SMALL, "t5xxl_model_config": t5}
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    options = {"dtype": torch.float32, **sizes}
    clip = comfy.sd.CLIP(target, embedding_directory=[str(tmp_path)], model_options=options)
    randomise(clip.cond_stage_model, 0)
    with torch.inference_mode(False), borrowed_clip(texts(clip)) as text:
        made = text.embed("aawxbc", "toy", 2)
        assert made.keys() == names

        def found() -> Tensor:
            for p in made.values():
                p.grad = None
            out = text.encode("a photo of aawxbc, in a box")
            (out["cross_attn"].square().mean() + out["pooled_output"].sin().mean()).backward()
            return torch.cat([p.grad.flatten() / p.grad.norm() for p in made.values() if p.grad is not None])

        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            right = found()
        assert len(right) == sum(p.numel() for p in made.values())
        assert (right != 0).all()
        assert relative(found(), right) < 1e-5
        with checkpointed(text.blocks, 1):
            assert relative(found(), right) < 1e-5
        with torch.no_grad():
            trained = text.encode("a photo of aawxbc, in a box")
    save_file({name: p.detach().clone() for name, p in made.items()}, tmp_path / "mine.safetensors")
    with torch.inference_mode():
        tokens = clip.tokenize("a photo of embedding:mine, in a box")
        stock = clip.encode_from_tokens(tokens, return_dict=True)
    assert torch.equal(trained["cross_attn"], stock["cond"])
    assert torch.equal(trained["pooled_output"], stock["pooled_output"])


@pytest.mark.parametrize(
    ("syntax", "prompt"), [("text", r"a \(photo:1.2\) of a cat"), ("comfyui", "a (photo:1.2) of a cat")]
)
def test_encoding_is_that_of_the_stock_text_encoder(clip: Any, syntax: str, prompt: str) -> None:
    with torch.inference_mode():
        stock = clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True)
        with torch.inference_mode(False), borrowed_clip(texts(clip, syntax)) as text:
            ours = text.encode(CAPTION)
    assert torch.equal(ours["cross_attn"], stock["cond"])
    assert torch.equal(ours["pooled_output"], stock["pooled_output"])


def test_a_text_encoder_comes_back_as_the_same_objects_with_the_same_bytes(clip: Any) -> None:
    net = clip.cond_stage_model
    before, bytes_before = identities(net), weight_hash(net)
    with suppress(KeyboardInterrupt), torch.inference_mode(False), borrowed_clip(texts(clip)) as text:
        text.encode(CAPTION)
        raise KeyboardInterrupt
    assert identities(net) == before
    assert weight_hash(net) == bytes_before
    assert not any("forward" in vars(m) for m in net.modules())
    assert not mm.in_training


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp8_e4m3fn_scaled", "int8"])
def test_gradients_through_a_quantised_text_encoder_are_those_of_the_dequantised_one(name: str) -> None:
    form = FORMATS[name]
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)

    def made(file: Any = (), **options: Any) -> Any:
        options = {"clip_l_model_config": sizes, "dtype": torch.float32, **options}
        return comfy.sd.CLIP(target, state_dict=file, model_options=options)

    plain = made()
    randomise(plain.cond_stage_model, 0)
    weights = {k: v.clone() for k, v in plain.cond_stage_model.state_dict().items()}
    with torch.inference_mode():
        if form.algo:
            file = quantised_file(weights, form, "encoder.layers.")
            own = made(file, quantization_metadata={"mixed_ops": True})
        else:
            own = made(weights, dtype=torch.float8_e4m3fn)
    for layer_name, layer in plain.cond_stage_model.named_modules():
        quantised = own.cond_stage_model.get_submodule(layer_name)
        for part in ("weight", "bias"):
            if isinstance(getattr(quantised, part, None), Tensor):
                getattr(layer, part).data = full(quantised, part)
    net = own.cond_stage_model
    before, bytes_before = identities(net), weight_hash(net)
    found = []
    for clip in (own, plain):
        with torch.inference_mode(False), borrowed_clip(texts(clip)) as text:
            assert any("dequantised" in vars(m) for m in text.net.modules()) == (clip is own)
            with injected(text.net, AdapterConfig(rank=2), seed=1) as adapter:
                g = torch.Generator().manual_seed(3)
                for p in adapter.parameters():
                    p.data = 0.2 * torch.randn(p.shape, generator=g)
                found.append(gradients(text, adapter.parameters()))
    # Of the formats that ComfyUI's text encoders compute with, only int8 rounds the input too.
    assert relative(found[0], found[1]) < (3 * form.rounding if name == "int8" else 1e-5)
    assert (identities(net), weight_hash(net)) == (before, bytes_before)
