"""Which frames of a clip are trained, once the model is known: its frame rate, and the step of its VAE.

A VAE with the temporal step s takes 1 + k s frames (Wan and HunyuanVideo: s = 4, LTX-Video: s = 8). A clip
that is shorter than asked for gives the longest such length that it has.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import DatasetError, shortened
from .clip import OWN_RATE, Clip, Span
from .records import Dataset, ImageRecord


def fitted(dataset: Dataset, *, step: int, rate: float, model: str) -> tuple[Dataset, list[str]]:
    """The dataset with the spans of its clips, and what the user must be told.

    step: frames between two latent frames; 0 for a model of still pictures, whose clips are left out. rate:
    frames a second of the model, 0 where it has none. model: its name, for messages. Raises DatasetError if
    nothing is left.
    """
    clips = [r for r in dataset.records if r.clip]
    if not clips:
        return dataset, []
    if not step:
        told = shortened(r.name for r in clips)
        if len(clips) == len(dataset):
            raise DatasetError(
                f"{model} trains on still pictures and the dataset holds only clips ({told}); add pictures,"
                " or connect a video model and its VAE"
            )
        left = dataset.with_records(r for r in dataset.records if not r.clip)
        return left, [f"{model} trains on still pictures; these clips are left out: {told}"]
    done = dataset.with_records(
        replace(r, clip=replace(r.clip, spans=spans(r.clip, step=step, rate=rate))) if r.clip else r
        for r in dataset.records
    )
    return done, _remarks([r for r in done.records if r.clip], rate)


def spans(clip: Clip, *, step: int, rate: float) -> tuple[Span, ...]:
    """The parts of a clip that are trained: of one length, in order, without overlap."""
    wanted = clip.options
    fps = trained_rate(clip, rate)
    own = clip.fps or fps
    there = int((clip.frames - 1) / own * fps + 1e-6) + 1
    length = 1 + (min(wanted.frames, there) - 1) // step * step
    slack = there - length
    parts = min(wanted.chunks, there // length) if wanted.part == "chunks" and there > wanted.frames else 1
    if parts == 1:
        starts = [0 if wanted.part == "start" else slack // 2]
    else:
        starts = [round(i * slack / (parts - 1)) for i in range(parts)]
    return tuple(Span(start=start / fps, frames=length, fps=fps) for start in starts)


def trained_rate(clip: Clip, rate: float) -> float:
    """Frames a second; 1 where neither the options nor the clip nor the model have a rate."""
    asked = rate if clip.options.fps == OWN_RATE else clip.options.fps
    return float(asked or clip.fps or rate or 1.0)


def frame_rate(dataset: Dataset) -> float | None:
    """Of all spans, if they have one in common."""
    rates = {s.fps for r in dataset.records if r.clip for s in r.clip.spans}
    return rates.pop() if len(rates) == 1 else None


def _remarks(clips: list[ImageRecord], rate: float) -> list[str]:
    def named(records: list[ImageRecord]) -> str:
        return shortened(r.name for r in records)

    told = []
    with_clip = [(r, r.clip) for r in clips if r.clip]
    if slow := [r for r, c in with_clip if 0 < c.fps < 0.99 * trained_rate(c, rate)]:
        told.append(
            f"frames are shown more than once where a clip has fewer a second than trained: {named(slow)}"
        )
    if still := [r for r, c in with_clip if c.spans[0].frames == 1 < c.options.frames]:
        told.append(f"too short to be trained as clips, so one frame counts as a picture: {named(still)}")
    if len(rates := sorted({trained_rate(c, rate) for _, c in with_clip})) > 1:
        numbers = shortened(f"{r:g}" for r in rates)
        told.append(
            f"clips are trained at different frame rates ({numbers}), of which a model that asks for the rate"
            " (LTX-Video) is told none; set fps in Video Clips to have one"
        )
    return told
