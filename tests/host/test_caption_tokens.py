"""A caption is text: each of ComfyUI's tokenizers gives the tokens of its letters unless asked otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.anima
import comfy.text_encoders.cosmos
import comfy.text_encoders.flux
import comfy.text_encoders.genmo
import comfy.text_encoders.hidream
import comfy.text_encoders.hunyuan_image
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.kandinsky5
import comfy.text_encoders.longcat_image
import comfy.text_encoders.lt
import comfy.text_encoders.omnigen2
import comfy.text_encoders.ovis
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sa_t5
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import pytest
import torch
from safetensors.torch import save_file

from in_graph_lora.trainer.host.caption_tokens import MAX_CHARACTERS, MAX_CHUNKS, CaptionTokenizer
from in_graph_lora.trainer.host.embedding import clip_with

pytestmark = pytest.mark.slow

encoders = comfy.text_encoders
TOKENIZERS: dict[str, Callable[..., Any]] = {
    "SD 1": comfy.sd1_clip.SD1Tokenizer,
    "SD 2": encoders.sd2_clip.SD2Tokenizer,
    "SDXL": comfy.sdxl_clip.SDXLTokenizer,
    "Stable Cascade": comfy.sdxl_clip.StableCascadeTokenizer,
    "SD 3": encoders.sd3_clip.SD3Tokenizer,
    "Stable Audio": encoders.sa_t5.SAT5Tokenizer,
    "Flux": encoders.flux.FluxTokenizer,
    "Flux.2 Klein": encoders.flux.KleinTokenizer,
    "PixArt": encoders.pixart_t5.PixArtTokenizer,
    "Mochi": encoders.genmo.MochiT5Tokenizer,
    "LTX-Video": encoders.lt.LTXVT5Tokenizer,
    "Cosmos": encoders.cosmos.CosmosT5Tokenizer,
    "HunyuanVideo": encoders.hunyuan_video.HunyuanVideoTokenizer,
    "Hunyuan Image": encoders.hunyuan_image.HunyuanImageTokenizer,
    "HiDream": encoders.hidream.HiDreamTokenizer,
    "Kandinsky 5": encoders.kandinsky5.Kandinsky5TokenizerImage,
    "Qwen-Image": encoders.qwen_image.QwenImageTokenizer,
    "Z-Image": encoders.z_image.ZImageTokenizer,
    "OmniGen2": encoders.omnigen2.Omnigen2Tokenizer,
    "Ovis": encoders.ovis.OvisTokenizer,
    "Anima": encoders.anima.AnimaTokenizer,
    "LongCat": encoders.longcat_image.LongCatImageTokenizer,
}
"""Those that need no file beyond ComfyUI's own; the others are made of the same parts."""

SYNTAX = [
    "embedding:foo",
    "a photo of embedding:foo, and more",
    "embedding:none of that name",
    "(a:1.5)",
    "a (red (toy:1.3)) on the [grass]",
    r"saber \(fate\) \\(x",
    "a) toy (",
    "smile :( or (:",
]


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    save_file({"emb": torch.ones(3, 768)}, folder / "foo.safetensors")
    return folder


@pytest.fixture(scope="module", params=TOKENIZERS)
def clip(request: pytest.FixtureRequest, embeddings: Path) -> comfy.sd.CLIP:
    return clip_of(TOKENIZERS[request.param], embeddings)


def clip_of(tokenizer: Callable[..., Any], embeddings: Path) -> comfy.sd.CLIP:
    """ComfyUI's CLIP as far as it tokenizes."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer = tokenizer(embedding_directory=str(embeddings))
    clip.tokenizer_options = {}
    return clip


def leaves(part: Any) -> Iterator[Any]:
    """The tokenizers that a tokenizer is made of."""
    if isinstance(part, comfy.sd1_clip.SDTokenizer):
        yield part
    else:
        for value in vars(part).values():
            if hasattr(value, "tokenize_with_weights"):
                yield from leaves(value)


def plain_ids(leaf: Any, text: str) -> list[int]:
    """By the tokenizer that the model was trained with, without ComfyUI."""
    return leaf.tokenizer(text, add_special_tokens=False)["input_ids"]


def holds(ids: list[int], wanted: list[int]) -> bool:
    return any(ids[i : i + len(wanted)] == wanted for i in range(len(ids)))


@pytest.mark.parametrize("caption", SYNTAX)
def test_every_encoder_gets_the_tokens_of_the_letters_at_weight_one(clip, caption):
    tokens = CaptionTokenizer(clip)(caption)
    for name, chunks in tokens.items():
        given = [token for chunk in chunks for token in chunk]
        assert {token[1] for token in given} == {1.0}, name
        ids = [token[0] for token in given]
        assert all(isinstance(token, int) for token in ids), f"{name}: an embedding was loaded"
        texts = [caption, f" {caption}"]  # Ovis puts a space before it
        wanted = [plain_ids(leaf, text) for leaf in leaves(clip.tokenizer) for text in texts]
        assert any(holds(ids, letters) for letters in wanted), name


@pytest.mark.parametrize("caption", ["", "a red toy", "a toy, 1:2, [x] 一只猫"])
def test_a_caption_without_syntax_gives_what_cliptextencode_gives(clip, caption):
    assert CaptionTokenizer(clip)(caption) == clip.tokenize(caption)


def same_tokens(one: Any, other: Any) -> bool:
    """Numbers, weights and vectors."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_tokens, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tokens(one[k], other[k]) for k in one)
    return one == other


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("a photo of <it>, on a box", "a photo of embedding:foo, on a box"),
        ("<it>", "embedding:foo"),
        ("(<it>) of\n<IT>.", r"\( embedding:foo \) of" + "\nembedding:foo ."),
        ("a photo " * 36 + "<it> of it", "a photo " * 36 + "embedding:foo of it"),
        ("a <it>s <its>", "a <it>s <its>"),
    ],
)
def test_a_word_with_vectors_gives_the_tokens_of_an_embedding(clip, caption, prompt):
    """Where ComfyUI gives a part of a text encoder no embeddings, that part reads the word."""
    taking = [leaf for leaf in leaves(clip.tokenizer) if leaf.embedding_directory is not None]
    vectors = {leaf.embedding_key: torch.ones(3, 768) for leaf in leaves(clip.tokenizer)}
    if isinstance(clip.tokenizer, encoders.hunyuan_video.HunyuanVideoTokenizer):
        with pytest.raises(RuntimeError, match="ambiguous"):
            clip.tokenize("embedding:foo")
        return
    mine, patched = CaptionTokenizer(clip), clip_with(clip, {"<it>": vectors})
    weighted = "a (<it>:1.3)"
    pairs = [
        (mine.with_vectors("<it>", vectors)(caption), prompt, mine(caption)),
        (patched.tokenize(weighted), "a ( embedding:foo :1.3)", clip.tokenize(weighted)),
    ]
    for tokens, stock_prompt, plain in pairs:
        stock = clip.tokenize(stock_prompt)
        given = [name for name in tokens if same_tokens(tokens[name], stock[name])]
        assert all(same_tokens(tokens[name], plain[name]) for name in tokens if name not in given)
        assert len(given) == len(taking) or "embedding:" not in stock_prompt


def test_the_words_of_an_embeddings_name_are_exactly_those_of_plain_text(embeddings):
    """Although the file is there: the tokenizer as it stands loads it."""
    clip = clip_of(comfy.sd1_clip.SD1Tokenizer, embeddings)
    caption = "a photo of embedding:foo"
    stock = [token for token, _ in clip.tokenize(caption)["l"][0]]
    assert sum(isinstance(token, torch.Tensor) for token in stock) == 3
    (chunk,) = CaptionTokenizer(clip)(caption)["l"]
    words = clip.tokenizer.clip_l.tokenizer(caption)["input_ids"]
    assert chunk == [(token, 1.0) for token in words] + [(49407, 1.0)] * (77 - len(words))


def test_a_chunk_ends_where_that_of_plain_text_ends(embeddings):
    """An embedding's name is no word of its own, which would be kept together and begin the next chunk."""
    clip = clip_of(comfy.sd1_clip.SD1Tokenizer, embeddings)
    caption = "a photo " * 36 + "embedding:foo of it"
    first, second = ([token for token, _ in chunk] for chunk in CaptionTokenizer(clip)(caption)["l"])
    ids = plain_ids(clip.tokenizer.clip_l, caption)
    assert first == [49406, *ids[:75], 49407]
    assert second[: len(ids) - 75 + 1] == [49406, *ids[75:]]


def test_tokenizer_options_of_the_clip_still_count(embeddings):
    clip = clip_of(encoders.pixart_t5.PixArtTokenizer, embeddings)
    clip.tokenizer_options = {"t5xxl_min_length": 99}
    assert len(CaptionTokenizer(clip)("(a:2)")["t5xxl"][0]) == 99


def test_the_clip_itself_keeps_its_syntax(clip):
    caption = "a (red:1.3) toy"
    before = clip.tokenize(caption)
    CaptionTokenizer(clip)(caption)
    assert clip.tokenize(caption) == before
    assert {leaf.embedding_identifier for leaf in leaves(clip.tokenizer)} == {"embedding:"}


def test_syntax_that_is_asked_for_is_that_of_cliptextencode(clip):
    caption = "a (red:1.3) toy"
    asked = CaptionTokenizer(clip, "comfyui")(caption)
    assert asked == clip.tokenize(caption)


def test_an_embedding_that_is_asked_for_is_loaded(embeddings):
    clip = clip_of(comfy.sd1_clip.SD1Tokenizer, embeddings)
    tokens = CaptionTokenizer(clip, "comfyui")("a embedding:foo")["l"][0]
    assert sum(isinstance(token, torch.Tensor) for token, _ in tokens) == 3


def test_brackets_without_end_are_text_too(embeddings):
    """ComfyUI's parser calls itself for each."""
    clip = clip_of(comfy.sd1_clip.SD1Tokenizer, embeddings)
    caption = "(" * 3000 + "a" + ")" * 3000
    with pytest.raises(RecursionError):
        clip.tokenize(caption)
    assert CaptionTokenizer(clip)(caption)["l"]


LONG = {
    "words": "photo of a cat, " * 7500,
    "Chinese": "一只可爱的猫坐在沙发上" * 3000,
    "one word": "cat" * 30_000,
    "signs": "!?" * 30_000,
    "brackets": "(a:1.5) " * 10_000,
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("family", ["SD 1", "SDXL", "SD 3", "Qwen-Image"])
def test_a_text_longer_than_any_caption_is_used_as_far_as_an_encoder_takes_it(family, kind, embeddings):
    clip = clip_of(TOKENIZERS[family], embeddings)
    tokenize = CaptionTokenizer(clip)
    fitted = tokenize.fitted(LONG[kind])
    assert LONG[kind].startswith(fitted)
    chunks = min(len(part) for part in tokenize(fitted).values())
    assert chunks <= MAX_CHUNKS
    assert len(fitted) == MAX_CHARACTERS or chunks == MAX_CHUNKS, "no more is cut than must be"


@pytest.mark.parametrize("caption", ["", "a (red:1.3) cat", "a cat on a red sofa, " * 100])
def test_captions_as_long_as_a_model_writes_them_are_used_whole(clip, caption):
    assert CaptionTokenizer(clip).fitted(caption) == caption


def test_an_encoder_of_long_texts_is_not_cut_for_the_clip_beside_it(embeddings):
    clip = clip_of(TOKENIZERS["HunyuanVideo"], embeddings)
    caption = "一只可爱的猫坐在沙发上" * 100
    assert len(CaptionTokenizer(clip)(caption)["l"]) > MAX_CHUNKS
    assert CaptionTokenizer(clip).fitted(caption) == caption


def test_no_tokenizer_sees_more_than_can_be_used(embeddings):
    seen: list[int] = []

    class Watched(comfy.sd.CLIP):
        def tokenize(self, text: str, *args: Any, **kwargs: Any) -> Any:
            seen.append(len(text))
            return super().tokenize(text, *args, **kwargs)

    clip = Watched(no_init=True)
    clip.tokenizer = comfy.sd1_clip.SD1Tokenizer(embedding_directory=str(embeddings))
    clip.tokenizer_options = {}
    CaptionTokenizer(clip).fitted("x" * 1_000_000)
    assert seen
    assert max(seen) == MAX_CHARACTERS
