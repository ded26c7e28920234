"""Which LoRAs of a long run stay, and what the run is said to write before it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from in_graph_lora.trainer.config import PreviewConfig, SaveConfig, TrainConfig
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.runs.checkpoints import loras, thin
from in_graph_lora.trainer.space import space


def checkpoints(folder: Path, states: set[int]) -> None:
    for step in range(100, 1100, 100):
        (folder / f"step_{step:06d}.safetensors").write_bytes(b"x")
    for step in states:
        (folder / f"step_{step:06d}.json").write_text("{}")


@pytest.mark.parametrize(
    ("save", "kept"),
    [
        (SaveConfig(), set(range(100, 1100, 100))),
        (SaveConfig(keep_checkpoints=1), {300, 900, 1000}),
        (SaveConfig(keep_checkpoints=3), {300, 800, 900, 1000}),
        (SaveConfig(keep_checkpoints=1, keep_every=500), {300, 500, 900, 1000}),
        (SaveConfig(keep_every=500), set(range(100, 1100, 100))),
    ],
)
def test_the_newest_the_best_each_kth_and_those_of_states_stay(tmp_path: Path, save, kept) -> None:
    checkpoints(tmp_path, states={900, 1000})
    thin(tmp_path, save, best=300)
    assert set(loras(tmp_path)) == kept


def test_the_disk_that_a_run_takes_is_less_where_checkpoints_are_thinned(tmp_path: Path) -> None:
    def of(**save: int) -> int:
        config = TrainConfig(save=SaveConfig(**save))
        return space(config, 20_000, adapters=10**6, optimizer=2 * 10**6, folder=tmp_path, side=64).needed

    states, log = 3 * 3 * 10**6, 200 * 20_000
    assert of() == (200 + 2) * 10**6 + states + log
    assert of(keep_checkpoints=5, keep_every=5000) == (5 + 3 + 2) * 10**6 + states + log
    assert of(every=0) == (1 + 2) * 10**6 + 2 * 3 * 10**6 + log
    pictures = TrainConfig(save=SaveConfig(every=0), preview=PreviewConfig(prompts=("x",), every=10_000))
    found = space(pictures, 20_000, adapters=0, optimizer=0, folder=tmp_path / "not" / "there", side=100)
    assert found.needed == log + 2 * 2 * 100 * 100 * 3
    assert found.free > 0


def test_numbers_below_0_are_refused() -> None:
    with pytest.raises(ConfigError, match="keep_every"):
        SaveConfig(keep_every=-1)
