"""LoadDataset: a folder of pictures, or pictures from the graph, as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..trainer.data.clip import CLIPS, ClipOptions
from ..trainer.data.joining import caption_lines, joined
from ..trainer.data.kept import KeptFiles
from ..trainer.data.report import overview
from ..trainer.data.scan import check_folder, folder_fingerprint
from ..trainer.errors import DatasetError
from ..trainer.host.paths import graph_images_directory, input_directory, unpacked_directory
from ..trainer.host.progress import NodeProgress
from ..trainer.pictures.contact_sheet import contact_sheet
from ..trainer.text import lines
from .captions_out import DESKS
from .sockets import CATEGORY, Clips, TrainDataset
from .sockets import Framing as FramingSocket

if TYPE_CHECKING:
    from torch import Tensor

    from ..trainer.data.framing import Framing

_graph_images = KeptFiles()


class LoadDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadDataset",
            display_name="Load Dataset (In-Graph)",
            category=CATEGORY,
            description="Reads the pictures to train on and their captions, and shows how they are cropped.",
            search_aliases=["load dataset", "load folder", "training images", "dataset", "kohya", "数据集"],
            is_output_node=True,
            # Pictures of different sizes arrive as a list; without this the node, and the training behind
            # it, would run once for each picture.
            is_input_list=True,
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Folder with pictures, or clips for video models, and .txt captions of the same"
                    " name, a zip of one, or the dataset file of kohya, ai-toolkit or SimpleTuner: an"
                    " absolute path, or one relative to ComfyUI's input folder. A subfolder named like"
                    " 10_cat is shown ten times an epoch.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=4096,
                    step=64,
                    tooltip="Pictures are trained at about this many pixels squared, in their own shape."
                    " 512 suits SD 1.5, 1024 suits SDXL and newer models.",
                ),
                io.Int.Input(
                    "repeats", default=1, min=1, max=1000, tooltip="How often an epoch shows each picture."
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures from the graph, beside or instead of the folder.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Captions of the connected images: one line for each, or one line for all.",
                ),
                io.String.Input(
                    "class_folder",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Folder with pictures of the class in general, such as any dog but yours, for"
                    " prior preservation.",
                ),
                io.String.Input(
                    "control_folder",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="Folder with control pictures for edit models, named like the pictures in folder."
                    " One folder a line for several.",
                ),
                FramingSocket.Input(
                    "framing", optional=True, tooltip="From Image Framing: crops, mirrors, resolutions."
                ),
                io.Boolean.Input(
                    "subfolders",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Read all subfolders, whatever their names.",
                ),
                io.String.Input(
                    "mask_folder",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Folder with masks named like the pictures. A subfolder named masks is found by"
                    " itself.",
                ),
                Clips.Input(
                    "clips",
                    optional=True,
                    tooltip="From Video Clips: which frames of the folder's clips are trained.",
                ),
            ],
            outputs=[
                TrainDataset.Output(display_name="dataset", tooltip="For Caption Images or Train LoRA."),
                io.Image.Output(
                    display_name="preview", tooltip="Contact sheet of the pictures as they are trained."
                ),
                io.Int.Output(display_name="count", tooltip="How many pictures there are."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        folder: Sequence[str | None],
        images: Sequence[Any] = (),
        subfolders: Sequence[bool | None] = (False,),
    ) -> bool | str:
        # `images` is (None,) when something is connected, and the folder is None when it is a link.
        if images or folder[0] is None:
            return True
        try:
            check_folder(resolve_folder(folder[0]), subfolders=subfolders[0] is not False)
        except DatasetError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        folder: Sequence[str | None],
        class_folder: Sequence[str | None] = ("",),
        images: Sequence[Any] = (),
        control_folder: Sequence[str | None] = ("",),
        subfolders: Sequence[bool | None] = (False,),
        mask_folder: Sequence[str | None] = ("",),
        **_: object,
    ) -> str | float:
        paths = [folder[0], class_folder[0], mask_folder[0], control_folder[0]]
        if None in paths:
            return float("nan")
        nested = subfolders[0] is not False
        try:
            used = [*paths[:3], *lines(control_folder[0] or "")]
            prints = [
                folder_fingerprint(resolve_folder(f), subfolders=nested) for f in used if f and f.strip()
            ]
        except DatasetError:
            return float("nan")
        # Only that something is connected is known here, not which pictures.
        return " ".join([*prints, *([str(_graph_images.losses())] if images else [])])

    @classmethod
    def execute(
        cls,
        folder: list[str],
        resolution: list[int],
        repeats: list[int],
        images: list[Tensor] | None = None,
        captions: list[str] | None = None,
        class_folder: list[str] | None = None,
        control_folder: list[str] | None = None,
        framing: list[Framing] | None = None,
        subfolders: list[bool] | None = None,
        mask_folder: list[str] | None = None,
        clips: list[ClipOptions] | None = None,
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        path, class_path = _single("folder", folder), _single("class_folder", class_folder or [""])
        masks = _single("mask_folder", mask_folder or [""])
        connected = [image for batch in images or () if batch is not None for image in batch]
        kept = graph_images_directory()
        dataset = joined(
            folder=resolve_folder(path) if path.strip() or not connected else None,
            class_folder=resolve_folder(class_path) if class_path.strip() else None,
            resolution=_single("resolution", resolution),
            repeats=_single("repeats", repeats),
            images=connected,
            captions=caption_lines(captions or []),
            keep_images_in=kept,
            on_file=progress.update,
            control_folders=[
                resolve_folder(f) for f in lines(_single("control_folder", control_folder or [""]))
            ],
            framing=_single("framing", framing or [None]),
            subfolders=_single("subfolders", subfolders or [False]),
            mask_folder=resolve_folder(masks) if masks.strip() else None,
            unpack_into=unpacked_directory(),
            clips=_single("clips", clips or [CLIPS]),
        )
        _graph_images.add(r.path for r in dataset.records if r.path.parent == kept)
        sheet = contact_sheet(dataset)
        plain = [resolve_folder(f) for f in (path, class_path) if f.strip()]
        desk = DESKS.load(dataset, [f for f in plain if f.is_dir()])
        shown = ui.PreviewImage(sheet).as_dict() | {"text": [overview(dataset)], "captions": [desk]}
        return io.NodeOutput(dataset, sheet, len(dataset), ui=shown)


def resolve_folder(folder: str) -> Path:
    """The folder that was typed; a relative one must lie in ComfyUI's input folder. Raises DatasetError."""
    text = folder.strip().strip('"').strip()  # Windows' "Copy as path" puts quotes around it
    if not text:
        raise DatasetError("folder: is empty; type the path of the folder that holds the pictures")
    base = input_directory()
    try:
        path = Path(text).expanduser()
        if not path.is_absolute():
            path = base / path
            if not path.resolve().is_relative_to(base.resolve()):
                raise DatasetError(
                    f"{folder}: leads out of ComfyUI's input folder; type the absolute path instead"
                )
    except (OSError, RuntimeError, ValueError) as e:
        raise DatasetError(f"{folder!r}: is not a usable path ({e}); type it again") from e
    return path


def _single(name: str, values: Sequence[Any]) -> Any:
    if len(values) != 1:
        raise DatasetError(f"{name}: got a list of {len(values)} values; connect a single one")
    return values[0]
