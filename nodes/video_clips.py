"""VideoClips: which frames of clips Load Dataset takes."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.data.clip import (
    CLIP_PARTS,
    CLIPS,
    MAX_CHUNKS,
    MAX_FPS,
    MAX_FRAMES,
    OWN_RATE,
    START_PICTURES,
    ClipOptions,
)
from .sockets import CATEGORY, Clips


class VideoClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VideoClips",
            display_name="Video Clips",
            category=CATEGORY,
            description="Which frames of the clips in a folder are trained. Without it: 33 from the middle.",
            search_aliases=["video", "frames", "fps", "wan", "hunyuan", "ltx", "视频", "video dataset"],
            inputs=[
                io.Int.Input(
                    "frames",
                    default=CLIPS.frames,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip="Frames that are trained at once, at most. Rounded down to what the model takes:"
                    " 4n+1 for Wan and HunyuanVideo, 8n+1 for LTX-Video. More frames need more memory.",
                ),
                io.Float.Input(
                    "fps",
                    default=float(CLIPS.fps),
                    min=float(OWN_RATE),
                    max=float(MAX_FPS),
                    step=1.0,
                    tooltip="Frames a second. -1: the model's own (Wan 16, HunyuanVideo 24, LTX-Video 25)."
                    " 0: the clip's own.",
                ),
                io.Combo.Input(
                    "part",
                    options=list(CLIP_PARTS),
                    default=CLIPS.part,
                    tooltip="Which part of a longer clip: its start, its center, or chunks spread over it.",
                ),
                io.Int.Input(
                    "chunks",
                    default=CLIPS.chunks,
                    min=1,
                    max=MAX_CHUNKS,
                    tooltip="With part chunks: how many, each a sample of its own. Fewer where a clip is"
                    " shorter, for chunks never overlap.",
                ),
                io.Boolean.Input(
                    "gifs", default=CLIPS.gifs, advanced=True, tooltip="Train GIF animations as clips."
                ),
                io.Combo.Input(
                    "start_picture",
                    options=list(START_PICTURES),
                    default=CLIPS.start_picture,
                    optional=True,
                    advanced=True,
                    tooltip="What is given as the first frame. auto: a control picture beside the clip, or"
                    " the clip's own where the model needs one. first frame: always one, for image to video."
                    " none: text to video.",
                ),
            ],
            outputs=[Clips.Output(display_name="clips", tooltip="For Load Dataset.")],
        )

    @classmethod
    def execute(cls, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(ClipOptions(**options))
