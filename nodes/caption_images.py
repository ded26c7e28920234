"""CaptionImages: writes captions from a template, from names, or by a model that looks at the pictures."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..trainer.data import captions
from ..trainer.data.captioners import PROMPTS, RANGES, CaptionRequest
from ..trainer.errors import ModelError
from ..trainer.host.captioning import folder_identity, model_folder, written_captions
from ..trainer.host.progress import NodeProgress, check_interrupt
from .captions_out import WRITE_SIDECARS, captions_out
from .sockets import CATEGORY, TrainDataset

if TYPE_CHECKING:
    from PIL import Image

    from ..trainer.data.captions import OnExisting, Source
    from ..trainer.data.records import Dataset

log = logging.getLogger(__name__)

_R = CaptionRequest()
NAMES: dict[str, Source | None] = {
    "template": None,
    "filename": captions.words_of_name,
    "existing": captions.existing,
}
MODELS = ("clip", "model_folder")


class CaptionImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CaptionImages",
            display_name="Caption Images",
            category=CATEGORY,
            description="Writes captions from a template with a trigger word and a class word, from file"
            " names, or by a model that looks at the pictures.",
            search_aliases=[
                "caption", "trigger word", "tag images", "auto caption", "WD tagger", "BLIP",
                "Florence-2", "JoyCaption", "Qwen-VL", "打标", "反推", "captioning", "描述",
            ],
            is_output_node=True,
            inputs=[
                TrainDataset.Input("dataset", tooltip="Pictures, from Load Dataset."),
                io.Combo.Input(
                    "method",
                    options=[*NAMES, *MODELS],
                    default="template",
                    tooltip="template: the caption is the text below with its placeholders filled in."
                    " filename: the words of the file's name. existing: the caption that is there. clip: the"
                    " connected text encoder looks at the picture, if it can see. model_folder: a captioner"
                    " or tagger on disk. All but template put the template before what they say.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="A rare word that will stand for your subject or style, such as ohwx."
                    " Pictures from class_folder do not get it.",
                ),
                io.String.Input(
                    "class_word", default="", tooltip="What the subject is in general, such as dog or woman."
                ),
                io.String.Input(
                    "template",
                    default="a photo of {trigger} {class}",
                    tooltip="May hold {trigger}, {class}, {filename} and {caption}, the one that is there"
                    " or what"
                    ' the method says. "{trigger}, {caption}" with overwrite puts the trigger before each'
                    " caption.",
                ),
                io.Combo.Input(
                    "on_existing",
                    options=["keep", "overwrite", "append"],
                    default="keep",
                    tooltip="For pictures that have a caption. keep: leave it. overwrite: write a new one."
                    " append: add what it does not say yet.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For the method clip: Qwen3-VL, Qwen3.5, Gemma 3 or 4, or the text encoder of"
                    " Krea 2.",
                ),
                io.String.Input(
                    "model_folder",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="For the method model_folder: a folder of transformers (BLIP, Florence-2, LLaVA,"
                    " JoyCaption, Qwen-VL) or a WD tagger, by its path or its name in models/LLM. Nothing is"
                    " downloaded.",
                ),
                io.Combo.Input(
                    "about",
                    options=list(PROMPTS),
                    default=_R.about,
                    optional=True,
                    advanced=True,
                    tooltip="What a model is asked for. subject: all but what belongs to your subject."
                    " style: what is shown, but not how. tags: a list.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="What a model is asked for, in your words, instead of about.",
                ),
                _number(io.Int, "max_length", "Tokens of a caption by a model, at most."),
                _number(
                    io.Float,
                    "temperature",
                    "0: the likeliest caption, always the same. Above: words are drawn, by caption_seed.",
                    step=0.05,
                ),
                io.Int.Input(
                    "caption_seed",
                    default=_R.seed,
                    min=0,
                    max=2**32 - 1,
                    optional=True,
                    advanced=True,
                    tooltip="Decides what is drawn with a temperature above 0.",
                ),
                _number(
                    io.Int,
                    "batch",
                    "Pictures at a time, for model folders; with a temperature, one.",
                    name="caption_batch",
                ),
                _number(io.Float, "threshold", "Of taggers: how sure of a tag it has to be.", step=0.01),
                _number(
                    io.Float,
                    "character_threshold",
                    "Of taggers: how sure of a character's name it has to be. 1: no names.",
                    step=0.01,
                ),
                WRITE_SIDECARS,
            ],
            outputs=[
                TrainDataset.Output(display_name="dataset", tooltip="The pictures with their new captions."),
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="All captions, in the dataset's order.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, method: str = "", model_folder: str | None = "", **_: object) -> str:
        return _folder_state(model_folder) if method == "model_folder" and model_folder else ""

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        method: str,
        trigger: str,
        class_word: str,
        template: str,
        on_existing: OnExisting,
        clip: Any = None,
        model_folder: str = "",
        about: str = _R.about,
        prompt: str = "",
        max_length: int = _R.max_length,
        temperature: float = _R.temperature,
        caption_seed: int = _R.seed,
        caption_batch: int = _R.batch,
        threshold: float = _R.threshold,
        character_threshold: float = _R.character_threshold,
        write_sidecars: str = "no",
    ) -> io.NodeOutput:
        source = NAMES.get(method)
        if method in MODELS:
            request = CaptionRequest(
                about=about,
                prompt=prompt,
                max_length=max_length,
                temperature=temperature,
                seed=caption_seed,
                batch=caption_batch,
                threshold=threshold,
                character_threshold=character_threshold,
            )
            records = captions.to_caption(dataset, on_existing)
            told = _Told(cls.hidden.unique_id)
            said = written_captions(records, method, request, told, clip=clip, folder=model_folder)
            source = lambda record: said[record.path]  # noqa: E731
        done = captions.apply(
            dataset,
            template=template,
            trigger=trigger,
            class_word=class_word,
            on_existing=on_existing,
            source=source,
        )
        given = {"clip": clip is not None, "model_folder": bool(model_folder.strip())}
        unused = [name for name, is_given in given.items() if is_given and name != method]
        notes = [f"{name} is not used by the method {method!r}" for name in unused]
        for note in notes:
            log.warning("Caption Images: %s", note)
        return captions_out(done, write_sidecars, notes)


class _Told:
    """Progress: the picture and the caption just written."""

    def __init__(self, node_id: str | None) -> None:
        self._progress = NodeProgress(node_id)

    def __call__(self, done: int, of: int, name: str, caption: str, picture: Image.Image | None) -> None:
        check_interrupt()
        if picture is not None:
            self._progress.text(f"{done}/{of} {name}: {caption}")
        self._progress.update(done, of, picture)


def _folder_state(name: str) -> str:
    try:
        return folder_identity(model_folder(name))
    except (ModelError, OSError):
        return ""


def _number(kind: Any, field: str, tooltip: str, *, name: str = "", step: float = 1) -> Any:
    low, high = RANGES[field]
    return kind.Input(
        name or field,
        default=getattr(_R, field),
        min=low,
        max=high,
        step=step,
        optional=True,
        advanced=True,
        tooltip=tooltip,
    )
