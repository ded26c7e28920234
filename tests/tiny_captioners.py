"""Captioners in their real file formats, without knowledge: four models of transformers, and a WD tagger."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

WORDS = ("cat", "dog", "red", "sofa", "a", "on", *string.ascii_lowercase, *"<>|:.,_")
CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}a"
)
TEXT_CHAT = "{% for m in messages %}<image> {{ m['content'] | trim }} {% endfor %}a"
"""Of a language model, as JoyCaption has it: content is a text."""

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 16}


def vocabulary(*special: str) -> dict[str, int]:
    words = dict.fromkeys(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *special, *WORDS))
    return {word: i for i, word in enumerate(words)}


def tokenizer(*special: str, **named: str) -> Any:
    """named: those of the special tokens that a processor asks for by an attribute."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(vocabulary(*special, *named.values()), unk_token="[UNK]"))
    words.add_special_tokens([*special, *named.values()])
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        **({"extra_special_tokens": named} if named else {"additional_special_tokens": list(special)}),
    )


def _saved(model: Any, processor: Any, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        size = 4 if "crossattention" in name else 1  # so that it matters what is seen
        p.data = size * torch.randn(p.shape, generator=generator) / (p[0].numel() ** 0.5 if p.ndim > 1 else 8)
        if "norm" in name.lower() and name.endswith("weight"):
            p.data += 1
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def blip(folder: Path) -> Path:
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()))
    ends = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {
        **SIZES,
        **ends,
        "vocab_size": len(vocabulary()),
        "encoder_hidden_size": 16,
        "num_hidden_layers": 1,
    }
    config = BlipConfig(text_config=text, vision_config={**SIZES, **PICTURE, "num_hidden_layers": 1})
    size = {"height": 32, "width": 32}
    processor = BlipProcessor(BlipImageProcessor(size=size), BertTokenizer(str(folder / "vocab.txt")))
    return _saved(BlipForConditionalGeneration(config), processor, folder)


def llava(folder: Path, chat: str = CHAT) -> Path:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    vision = CLIPVisionConfig(**SIZES, **PICTURE, num_hidden_layers=2)
    words = vocabulary("<image>")
    text = LlamaConfig(
        **SIZES, vocab_size=len(words), num_hidden_layers=1, bos_token_id=2, eos_token_id=3, pad_token_id=0
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=words["<image>"])
    square = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square),
        tokenizer("<image>"),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    )
    return _saved(LlavaForConditionalGeneration(config), processor, folder)


def florence2(folder: Path) -> Path:
    from transformers import (
        BartConfig,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    words = vocabulary("<image>")
    stages = {"depths": (1, 1), "embed_dim": (16, 32), "num_heads": (2, 2), "num_groups": (2, 2)}
    patches = {"patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1)}
    vision = {**stages, **patches, "patch_prenorm": (False, True), "window_size": 4, "projection_dim": 16}
    sides = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 3}
    text = BartConfig(**sides, **ends, vocab_size=len(words), d_model=16, max_position_embeddings=64)
    config = Florence2Config(
        text_config=text, vision_config=vision, image_token_id=words["<image>"], is_encoder_decoder=True
    )
    square = {"height": 32, "width": 32}
    pictures = CLIPImageProcessor(size=square, do_center_crop=False, image_seq_length=17)
    processor = Florence2Processor(pictures, tokenizer(image_token="<image>"))
    return _saved(Florence2ForConditionalGeneration(config), processor, folder)


def qwen2_vl(folder: Path) -> Path:
    """Its pictures become as many tokens as they are large."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    marks = {f"{name}_token_id": f"<|{name}|>" for name in ("vision_start", "vision_end")}
    marks |= {f"{name}_token_id": f"<|{name}_pad|>" for name in ("image", "video")}
    words = vocabulary(*marks.values())
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
    ids = {name: words[mark] for name, mark in marks.items()}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(patch_size=8, min_pixels=16 * 16, max_pixels=64 * 64),
        tokenizer(*marks.values()),
        Qwen2VLVideoProcessor(patch_size=8),
        chat_template=CHAT.replace("<image>", "<|vision_start|> <|image_pad|> <|vision_end|>"),
    )
    return _saved(Qwen2VLForConditionalGeneration(config), processor, folder)


TAGS = [
    ("general", "9"),
    ("1girl", "0"),
    ("long_hair", "0"),
    ("^_^", "0"),
    ("hatsune_miku", "4"),
    ("some_artist", "1"),
    ("red_sofa", "0"),
]
SIDE = 8


def tagger(folder: Path, scores: list[float], batch: int | str = "batch") -> Path:
    """Scores as given, plus how blue the picture's first pixel is, for the last tag."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f"{i},{name},{category},5" for i, (name, category) in enumerate(TAGS))
    (folder / "selected_tags.csv").write_text(f"tag_id,name,category,count\n{rows}\n")
    weight = np.zeros((SIDE * SIDE * 3, len(TAGS)), np.float32)
    weight[0, -1] = 1 / 255
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["seen"]),
        helper.make_node("Add", ["seen", "bias"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, len(TAGS)])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array(scores, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    return folder
