"""Which frames of a clip are trained, by the VAE's step and the frame rates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from in_graph_lora.trainer.config import ObjectiveConfig, PriorConfig
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.data.clip import Clip, ClipOptions, Span
from in_graph_lora.trainer.data.clip_spans import fitted, frame_rate, spans
from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.errors import DatasetError
from in_graph_lora.trainer.objective import Objective


def clip(frames: int, fps: float, /, **options: object) -> Clip:
    return Clip(frames=frames, fps=fps, options=ClipOptions(**options))  # type: ignore[arg-type]


def record(name: str, of: Clip | None) -> ImageRecord:
    return ImageRecord(path=Path(name), caption="c", size=(64, 48), digest=name, clip=of)


@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("there", [1, 2, 4, 5, 8, 9, 16, 17, 32, 33, 100])
@pytest.mark.parametrize("wanted", [1, 3, 9, 20, 33, 81])
@pytest.mark.parametrize("part", ["start", "center", "chunks"])
def test_spans_have_a_length_that_the_vae_takes_and_lie_within_the_clip(step, there, wanted, part):
    found = spans(clip(there, 24, fps=0, frames=wanted, part=part, chunks=3), step=step, rate=16)
    lengths = {s.frames for s in found}
    assert len(lengths) == 1
    (length,) = lengths
    assert (length - 1) % step == 0
    assert length <= min(wanted, there) < length + step
    for span, after in zip(found, [*found[1:], None], strict=True):
        end = span.start + (span.frames - 1) / span.fps
        assert 0 <= span.start <= end <= (there - 1) / 24 + 1e-9
        assert after is None or after.start > end, "no overlap"


def test_parts_of_a_long_clip():
    def starts(**options: object) -> list[float]:
        return [s.start * 10 for s in spans(clip(101, 10, fps=0, frames=21, **options), step=4, rate=16)]

    assert starts(part="start") == [0]
    assert starts(part="center") == [40]
    assert starts(part="chunks", chunks=3) == [0, 40, 80]
    assert starts(part="chunks", chunks=50) == [0, 27, 53, 80], "no more than fit"


@pytest.mark.parametrize(
    ("of", "rate", "expected"),
    [
        (clip(48, 24, frames=33), 16, Span(start=1 / 16, frames=29, fps=16)),
        (clip(48, 24, frames=33, fps=0), 16, Span(start=7 / 24, frames=33, fps=24)),
        (clip(48, 24, frames=33, fps=12), 16, Span(start=1 / 12, frames=21, fps=12)),
        (clip(48, 24, frames=33), 0, Span(start=7 / 24, frames=33, fps=24)),
        (clip(48, 0, frames=33), 16, Span(start=7 / 16, frames=33, fps=16)),
        (clip(48, 0, frames=33, fps=0), 16, Span(start=7 / 16, frames=33, fps=16)),
        (clip(48, 0, frames=33), 0, Span(start=7, frames=33, fps=1)),
    ],
)
def test_frames_are_taken_at_the_models_rate_the_clips_own_or_one_that_is_named(of, rate, expected):
    assert spans(of, step=4, rate=rate) == (expected,)


def test_a_model_of_still_pictures_leaves_clips_out_by_name():
    mixed = Dataset(records=(record("a.mp4", clip(9, 8)), record("b.png", None)))
    left, told = fitted(mixed, step=0, rate=0, model="SDXL")
    assert [r.name for r in left.records] == ["b.png"]
    assert told == ["SDXL trains on still pictures; these clips are left out: a.mp4"]
    only = Dataset(records=(record("a.mp4", clip(9, 8)),))
    with pytest.raises(DatasetError, match=r"holds only clips \(a.mp4\); add pictures"):
        fitted(only, step=0, rate=0, model="SDXL")


def test_a_dataset_without_clips_stays_what_it_is():
    plain = Dataset(records=(record("b.png", None),))
    assert fitted(plain, step=4, rate=16, model="Wan") == (plain, [])


def test_slow_and_short_clips_are_said_and_chunks_counted():
    chunks = clip(200, 24, frames=9, part="chunks", chunks=4)
    records = (record("slow.mp4", clip(40, 8)), record("short.mp4", clip(3, 30)), record("c.mp4", chunks))
    done, told = fitted(Dataset(records=(*records, record("b.png", None))), step=4, rate=16, model="Wan")
    assert told == [
        "frames are shown more than once where a clip has fewer a second than trained: slow.mp4",
        "too short to be trained as clips, so one frame counts as a picture: short.mp4",
    ]
    assert done.shown == 1 + 1 + 4 + 1
    assert done.digest != Dataset(records=(*records, record("b.png", None))).digest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"frames": 0}, "frames is 0; choose 1 to 1025"),
        ({"fps": -2}, "fps is -2; choose -1"),
        ({"part": "end"}, "part is 'end'; choose one of start, center, chunks"),
        ({"chunks": 65}, "chunks is 65; choose 1 to 64"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(DatasetError, match=told):
        ClipOptions(**options)


def test_clips_of_one_rate_tell_it_and_of_several_say_so():
    own = ClipOptions(fps=0)
    records = [record(f"{r}.mp4", Clip(frames=40, fps=r, options=own)) for r in (24, 30)]
    one, told = fitted(Dataset(records=(records[0],)), step=8, rate=25, model="LTX")
    assert (frame_rate(one), told) == (24, [])
    both, told = fitted(Dataset(records=tuple(records)), step=8, rate=25, model="LTX")
    assert frame_rate(both) is None
    assert told[0].startswith("clips are trained at different frame rates (24, 30)")


def test_a_masked_clip_trains_beside_one_without_a_mask():
    """The mask of a picture counts for every frame."""
    x_0 = torch.zeros(2, 4, 3, 2, 2)
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    group = [
        CachedSample(latent=x_0[0], conditioning=None, key="a", mask=mask),
        CachedSample(latent=x_0[1], conditioning=None, key="b"),
    ]
    objective = Objective(config=ObjectiveConfig(), prior=PriorConfig(), denoiser=None, adapter=None)  # type: ignore[arg-type]
    out = objective._mask(group, x_0, torch.device("cpu"))
    assert out is not None
    assert out.shape == (2, 1, 3, 2, 2)
    assert torch.equal(out[0], mask.clamp(min=0.1).expand(1, 3, 2, 2))
    assert bool((out[1] == 1).all())
