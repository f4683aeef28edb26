"""Recipe for Stable Diffusion XL: base, Turbo, Lightning, inpainting, and the refiner.

    python -m export.stable_diffusion_xl CHECKPOINT -o FOLDER [--modules unet]

Captured are one or two text encoders, the U-Net and both halves of the VAE, in float32. The published VAE
overflows in float16 (force_upcast).
"""

from __future__ import annotations

import sys

from export.recipe import run

PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
NOTES = {
    "encoder_hidden_states": "the last but one hidden states of both text encoders, side by side",
    "text_embeds": "the second text encoder's embedding of the whole prompt",
    "time_ids": "original height and width, crop from the top and left, target height and width; "
    "the refiner has the aesthetic score in place of the last two",
}


def main(arguments: list[str] | None = None) -> int:
    """Run with the given command-line arguments; the exit status."""
    return run(__doc__, PIPELINES, NOTES, arguments)


if __name__ == "__main__":
    sys.exit(main())
