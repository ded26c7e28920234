"""Pictures to train on: photographic ones out of ComfyUI's own template packages, with captions.

ComfyUI installs thumbnails of its workflow templates. Those chosen here look like photographs, though most
were made by image models; the captions say what is on them. All are square, so most are cropped, which gives
the data set the mixed sizes and shapes that a folder of photographs has. One is stored on its side with an
EXIF orientation, as cameras do.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

FOLDER = "demo-photos"
ENOUGH = 12
TURNED = 1
"""Which photo is stored on its side."""
EXIF_ORIENTATION, QUARTER_TURN = 0x0112, 6

Box = tuple[float, float, float, float]
WHOLE: Box = (0, 0, 1, 1)


@dataclass(frozen=True)
class Photo:
    file: str
    """Name of the template's thumbnail, without .webp."""
    caption: str
    crop: Box = WHOLE
    """Left, top, right and bottom, as parts of the width and height."""


PHOTOS = (
    Photo("image_lens_t2i-1", "photo of white cosmos flowers in a meadow in evening light"),
    Photo("sdxlturbo_example-1", "photo of a golden puppy running on a pavement at sunset", (0.25, 0, 1, 1)),
    Photo("flux_canny_model_example-1", "photo of a ladybird on an orange rose", (0, 0.08, 1, 0.83)),
    Photo("image_chroma_text_to_image-1", "photo of a leopard lying in a jungle", (0.05, 0.35, 1, 1)),
    Photo(
        "image_flux2_text_to_image_9b-1",
        "photo of a motorcycle and a diner at dusk",
        (0, 0.1, 1, 0.9),
    ),
    Photo("gsl_starter_1_3-1", "photo of a silver sports car on a road", (0, 0.25, 1, 0.85)),
    Photo(
        "utility_pid_latent_upscale_dit-1",
        "photo of a person in a coat before skyscrapers",
        (0.17, 0, 0.84, 1),
    ),
    Photo("image_mage_flow_edit_turbo_int8-2", "photo of hot-air balloons over hills", (0, 0.05, 1, 0.8)),
    Photo("api_bria_image_edit-2", "photo of the terrace of a white house", (0.2, 0, 1, 1)),
    Photo("utility_seedvr2_3b_int8_upscale_image-1", "close-up photo of the gears of a watch"),
    Photo("api_stability_ai_sd3.5_t2i-1", "photo of a glass mug of water among daisies", (0.15, 0.1, 0.9, 1)),
    Photo("templates_ohneis_i2v-2", "photo of a small plane on snow below a mountain", (0, 0.1, 1, 0.9)),
    Photo(
        "image_qwen_image_edit_2509_relight-2", "photo of a bright living room with a sofa", (0, 0.2, 1, 0.95)
    ),
    Photo(
        "templates-product_scene_relight-2", "photo of a field of white flowers and a hill", (0, 0.3, 1, 1)
    ),
    Photo("api_bria_image_outpainting-1", "photo of a baby otter held in a hand", (0.2, 0.2, 0.9, 1)),
    Photo("image_kandinsky5_t2i-1", "photo of a hiker with a backpack in the mountains", (0.2, 0, 0.95, 1)),
)


def write_photos(input_folder: Path, templates: Path | None = None) -> Path:
    """Fills input/demo-photos with pictures and captions, says what it found, and returns the folder.

    The template packages change with ComfyUI. If too few of the chosen pictures are there, others from the
    same packages take their places, with a caption that is true of any of them.
    """
    target = input_folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    found = _thumbnails(templates or Path(sysconfig.get_path("purelib")))
    chosen = [photo for photo in PHOTOS if photo.file in found]
    others = list(_others(found, ENOUGH - len(chosen)))
    for i, photo in enumerate([*chosen, *others]):
        _write(found[photo.file], photo, target, turned=i == TURNED)
    _report(len(chosen), len(others), target)
    return target


def _thumbnails(packages: Path) -> dict[str, Path]:
    files = sorted(packages.glob("comfyui_workflow_templates*/templates/*.webp"))
    return {file.stem: file for file in files}


def _others(found: dict[str, Path], count: int) -> Iterator[Photo]:
    known = {photo.file for photo in PHOTOS}
    for name, file in found.items():
        if count <= 0:
            return
        with Image.open(file) as image:
            still = not getattr(image, "is_animated", False)
        if still and name not in known:
            count -= 1
            yield Photo(name, "photo or drawing from a workflow template")


def _write(source: Path, photo: Photo, target: Path, *, turned: bool) -> None:
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    left, top, right, bottom = photo.crop
    width, height = image.size
    image = image.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))
    exif = Image.Exif()
    if turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[EXIF_ORIENTATION] = QUARTER_TURN  # a viewer turns it back, clockwise
    image.save(target / f"{photo.file}.jpg", quality=95, exif=exif)
    (target / f"{photo.file}.txt").write_text(photo.caption + "\n", encoding="utf-8")


def _report(chosen: int, others: int, target: Path) -> None:
    print(f"{chosen + others} pictures with captions in {target}")
    if others:
        print(f"  {others} of them stand in for pictures that this ComfyUI does not bring.")
    if chosen + others < ENOUGH:
        print(f"  Fewer than {ENOUGH} pictures were found in ComfyUI's template packages.")
