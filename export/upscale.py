"""Recipe for Stable Diffusion's upscaler by 4.

    python -m export.upscale CHECKPOINT -o FOLDER [--modules unet]

Captured are the text encoder, the U-Net and both halves of the VAE, in float32. Latents are as large as the
small picture.
"""

from __future__ import annotations

import sys

from export.recipe import run

PIPELINES = ("StableDiffusionUpscalePipeline",)
NOTES = {
    "condition": "the small picture, to which noise of the level was added",
    "class_labels": "the level of that noise",
}


def main(arguments: list[str] | None = None) -> int:
    """Run with the given command-line arguments; the exit status."""
    return run(__doc__, PIPELINES, NOTES, arguments)


if __name__ == "__main__":
    sys.exit(main())
