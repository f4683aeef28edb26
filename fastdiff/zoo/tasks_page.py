"""The picture of docs/tasks.md: what each task makes of one picture of the shipped model.

``python -m fastdiff.zoo.tasks_page scenes.fd -o docs/tasks-scenes.png``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    import fastdiff

PROMPT = "a red circle left of a blue square on a beige background"
CHANGED = "a green star left of a blue square on a beige background"
CALL: dict[str, Any] = {"sampler": "euler", "steps": 20, "guidance": 5.0, "seed": 8}
SIDE, COLUMNS = 128, 5

Cell = tuple[Image.Image, str]


def main() -> None:
    """Draw the page's picture with the engine that is named."""
    from fastdiff import load

    parser = argparse.ArgumentParser(prog="python -m fastdiff.zoo.tasks_page", description=__doc__)
    parser.add_argument("engine", help="engine of the shipped model, as fastdiff build scenes writes it")
    parser.add_argument("-o", "--output", type=Path, default=Path("tasks-scenes.png"))
    arguments = parser.parse_args()
    page(load(arguments.engine)).save(arguments.output, optimize=True)
    print(arguments.output)


def page(pipe: fastdiff.Pipeline) -> Image.Image:
    """A row for each task, on white."""
    from fastdiff.image import contact_sheet

    cells: list[Cell] = []
    for row in (_pictures(pipe), _inpainted(pipe), _variations(pipe), _enlarged(pipe)):
        cells += [*row, *[(Image.new("RGB", (1, 1), "white"), "")] * (COLUMNS - len(row))]
    images = [image.resize((SIDE, SIDE), Image.Resampling.NEAREST) for image, _ in cells]
    return contact_sheet(images, [caption for _, caption in cells], columns=COLUMNS)


def _pictures(pipe: fastdiff.Pipeline) -> list[Cell]:
    first = pipe(PROMPT, **CALL).images[0]
    row: list[Cell] = [(first, f'from noise: "{PROMPT}"')]
    for strength in (0.2, 0.4, 0.8):
        image = pipe.img2img(first, CHANGED, strength=strength, **CALL).images[0]
        row.append((image, f'img2img of it, strength {strength}: "{CHANGED}"'))
    return row


def _inpainted(pipe: fastdiff.Pipeline) -> list[Cell]:
    first = pipe(PROMPT, **CALL).images[0]
    mask = Image.new("L", first.size)
    ImageDraw.Draw(mask).rectangle((0, 0, first.width // 2 - 1, first.height - 1), fill=255)
    shown = mask.convert("RGB")
    ImageDraw.Draw(shown).rectangle((0, 0, mask.width - 1, mask.height - 1), outline="gray")
    row: list[Cell] = [(first, "picture"), (shown, "mask: white is painted anew")]
    for strength in (1.0, 0.8):
        image = pipe.inpaint(first, mask, CHANGED, strength=strength, overlay=True, **CALL).images[0]
        row.append((image, f'inpaint, strength {strength:g}, overlay: "{CHANGED}"'))
    return row


def _variations(pipe: fastdiff.Pipeline) -> list[Cell]:
    row: list[Cell] = []
    for strength in (0.0, 0.2, 0.4, 0.6, 1.0):
        image = pipe(PROMPT, **CALL, variation_seed=21, variation_strength=strength).images[0]
        row.append((image, f"variation of seed {CALL['seed']} towards 21, strength {strength:g}"))
    return row


def _enlarged(pipe: fastdiff.Pipeline) -> list[Cell]:
    first = pipe(PROMPT, **CALL).images[0]
    row: list[Cell] = [(pipe(PROMPT, **CALL, height=128, width=128).images[0], "128 x 128 from noise")]
    for method, strength in (("latent_bilinear", 0.4), ("lanczos", 0.4)):
        image = pipe.high_resolution(PROMPT, method=method, strength=strength, **CALL).images[0]
        row.append((image, f"two passes to 128 x 128, {method}, strength {strength}"))
    row.append((first.resize((SIDE, SIDE), Image.Resampling.LANCZOS), "64 x 64 by lanczos alone"))
    image = pipe.upscale(first, PROMPT, **CALL).images[0]
    return [*row, (image, "upscale of it, strength 0.3")]


if __name__ == "__main__":
    main()
