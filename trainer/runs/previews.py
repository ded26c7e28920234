"""Sample pictures of a run, drawn by the host's sampler between two legs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..adapters.lora_file import read_lora
from ..config import PreviewConfig
from ..events import Emit, Notice, Phase, PreviewSaved
from ..files import write_image
from ..pictures.grid import labelled_grid
from ..ports import Sampler
from ..timeline import PREVIEWS
from . import steps
from .folder import RunFolder

COLUMNS = 8
"""Steps in the overview; of more, as many are taken evenly."""


class Previews:
    """`previews/step_N_I.png` for prompt I, and `previews.png`, a row for each prompt and a column a step."""

    def __init__(
        self, config: PreviewConfig, sampler: Sampler | None, folder: RunFolder, steps: int, emit: Emit
    ) -> None:
        self.every = config.every
        self.sampler = sampler if config.prompts else None
        self.folder, self.steps, self.emit = folder, steps, emit

    def next_step(self, step: int) -> int:
        """The first step after `step` that a preview is due at; the last one without previews."""
        if self.sampler is None:
            return self.steps
        return min(self.steps, step - step % self.every + self.every)

    def _due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps

    def draw(self, step: int, lora: Path, stopped: Callable[[], bool]) -> None:
        """The pictures of a step, unless they are there. A failure is told, and the run goes on.

        lora: the step's LoRA file; step 0 is the model without one. stopped: asked between pictures.
        """
        if self.sampler is None or not self._due(step) or self._drawn(step, self.sampler):
            return
        try:
            self._draw(step, self.sampler, read_lora(lora)[0] if step else None, stopped)
        except Exception as error:  # noqa: BLE001 - whatever it is; ComfyUI's interrupt is no Exception
            self.emit(Notice(message=f"the preview at step {step} failed ({error}); the training goes on"))

    def _draw(
        self, step: int, sampler: Sampler, lora: Mapping[str, Tensor] | None, stopped: Callable[[], bool]
    ) -> None:
        paths = []
        pictures = sampler.pictures(lora)
        total = len(sampler.prompts)
        for i, prompt in enumerate(sampler.prompts):
            if stopped():
                pictures.close()
                return
            self.emit(Phase(name=PREVIEWS, done=i, total=total, label=f"preview at step {step}"))
            path = self._path(step, i)
            about = {"prompt": prompt, "settings": sampler.settings, "train_step": str(step)}
            write_image(path, next(pictures), about)
            paths.append(path)
        self._write_overview(sampler)
        self.emit(PreviewSaved(step=step, paths=tuple(paths)))

    def drawn(self) -> list[int]:
        """The steps whose pictures are all there, with the present settings."""
        if self.sampler is None or not self._pictures.is_dir():
            return []
        found = steps.by_step(self._pictures.iterdir(), _ending(0))
        return [step for step in found if step <= self.steps and self._drawn(step, self.sampler)]

    def open(self, step: int, prompt: int) -> Image.Image:
        """A picture of a step in `drawn`."""
        with Image.open(self._path(step, prompt)) as image:
            return image.convert("RGB")

    def _path(self, step: int, prompt: int) -> Path:
        return self._pictures / (steps.name(step) + _ending(prompt))

    @property
    def _pictures(self) -> Path:
        return self.folder.path / "previews"

    def _drawn(self, step: int, sampler: Sampler) -> bool:
        return all(self._picture(step, i, sampler) is not None for i in range(len(sampler.prompts)))

    def _picture(self, step: int, i: int, sampler: Sampler) -> Image.Image | None:
        """None when it is not there, not whole, or of other settings."""
        with suppress(OSError, SyntaxError), Image.open(self._path(step, i)) as image:
            image.load()
            told = getattr(image, "text", {})
            if (told.get("prompt"), told.get("settings")) == (sampler.prompts[i], sampler.settings):
                return image.convert("RGB")
        return None

    def _write_overview(self, sampler: Sampler) -> None:
        drawn = self.drawn()
        if len(drawn) > COLUMNS:
            last = len(drawn) - 1
            drawn = [drawn[round(i * last / (COLUMNS - 1))] for i in range(COLUMNS)]
        titles = ["without LoRA" if step == 0 else f"step {step}" for step in drawn]
        rows = []
        for i, prompt in enumerate(sampler.prompts):
            pictures = [self._picture(step, i, sampler) for step in drawn]
            rows.append((prompt, [p for p in pictures if p is not None]))
        write_image(self.folder.path / "previews.png", labelled_grid(titles, rows))


def _ending(prompt: int) -> str:
    return f"_{prompt + 1}.png"
