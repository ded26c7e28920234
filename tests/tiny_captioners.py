"""Captioners in their real file formats, without knowledge: BLIP and LLaVA of transformers, a WD tagger."""

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


def tokenizer(*special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(vocabulary(*special), unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        additional_special_tokens=list(special),
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
