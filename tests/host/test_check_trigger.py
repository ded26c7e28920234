"""What text encoders make of a trigger word, by ComfyUI's own tokenizers."""

from __future__ import annotations

import comfy.sd1_clip
import comfy.text_encoders.flux
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import pytest

from in_graph_lora.nodes.check_trigger import CheckTrigger
from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.host.trigger import check_trigger

from .test_caption_tokens import clip_of


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    encoders = comfy.text_encoders
    made = {
        "SD 1": comfy.sd1_clip.SD1Tokenizer,
        "Flux": encoders.flux.FluxTokenizer,
        "SD 3": encoders.sd3_clip.SD3Tokenizer,
        "Qwen-Image": encoders.qwen_image.QwenImageTokenizer,
    }
    folder = tmp_path_factory.mktemp("embeddings")
    return {name: clip_of(kind, folder) for name, kind in made.items()}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("SD 1", {"clip_l"}),
        ("Flux", {"clip_l", "t5xxl"}),
        ("SD 3", {"clip_l", "clip_g", "t5xxl"}),
        ("Qwen-Image", {"qwen25_7b"}),
    ],
)
def test_each_text_encoder_is_asked_for_its_own_tokens(clips, name, parts):
    dog, ohwx = check_trigger(clips[name], "dog"), check_trigger(clips[name], "ohwx")
    assert set(dog.tokens) == parts
    assert set(dog.ordinary) == parts
    assert ohwx.ordinary == ()
    joined = {"".join(pieces).replace("</w>", "").replace("␣", "") for pieces in ohwx.tokens.values()}
    assert joined == {"ohwx"}


@pytest.mark.parametrize("name", ["SD 1", "Flux", "SD 3", "Qwen-Image"])
def test_three_suggestions_are_no_words_of_any_encoder(clips, name):
    found = check_trigger(clips[name], "dog")
    assert len(set(found.suggestions)) == 3
    for word in found.suggestions:
        again = check_trigger(clips[name], word)
        assert again.ordinary == ()
        assert all(len(pieces) <= 3 for pieces in again.tokens.values())
    assert check_trigger(clips[name], "cat").suggestions == found.suggestions


@pytest.mark.parametrize("word", ["ohwx", "sks"])
def test_one_of_the_rarest_tokens_is_no_ordinary_word(clips, word):
    found = check_trigger(clips["SD 1"], word)
    assert (len(found.tokens["clip_l"]), found.ordinary) == (1, ())


def test_a_trigger_of_several_words_is_ordinary_when_one_of_them_is(clips):
    assert check_trigger(clips["SD 1"], "ohwx  dog").ordinary == ("clip_l",)
    assert check_trigger(clips["SD 1"], "ohwx zzqj").ordinary == ()


def test_an_embedding_in_the_trigger_is_letters(clips):
    (pieces,) = check_trigger(clips["SD 1"], "embedding:foo").tokens.values()
    assert "".join(pieces).replace("</w>", "") == "embedding:foo"


@pytest.mark.parametrize("trigger", ["", "  ", "x" * 201])
def test_no_trigger_and_a_whole_text_are_refused(clips, trigger):
    with pytest.raises(ModelError, match="type a word"):
        check_trigger(clips["SD 1"], trigger)


def test_the_node_says_what_it_found(clips):
    done = CheckTrigger.execute(clips["Flux"], " ohwx ")
    trigger, report = done.result
    assert trigger == "ohwx"
    assert report.startswith("**ohwx** is rare for these encoders.")
    assert "| clip_l | 1 | `ohwx</w>` | rare |" in report
    assert "| t5xxl | 5 | `␣` · `o` · `h` · `w` · `x` | rare |" in report
    assert "is an ordinary word" in CheckTrigger.execute(clips["SD 1"], "dog").result[1]
