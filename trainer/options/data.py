"""How pictures and captions are trained on."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import check_choice, check_range

CAPTION_SYNTAXES = ("text", "comfyui")
EDIT_NODES = ("auto", "TextEncodeQwenImageEdit")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    batch_size: int = 1
    """Pictures in a batch."""
    resolution: int = 512
    """Side of the square whose area a picture has at most; pixels."""
    caption_syntax: str = "text"
    """text: a caption means its letters; comfyui: `(word:1.3)` and `embedding:name` as in CLIPTextEncode."""
    edit_node: str = "auto"
    """The stock node whose conditions an edit model is trained with; "auto" is that for its text encoder."""

    def __post_init__(self) -> None:
        check_choice("edit_node", self.edit_node, EDIT_NODES)
        check_choice("caption_syntax", self.caption_syntax, CAPTION_SYNTAXES)
        check_range(self, 1, 1024, "batch_size")
        check_range(self, 16, 8192, "resolution")
