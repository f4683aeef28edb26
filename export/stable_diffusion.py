"""Recipe for Stable Diffusion 1.x and 2.x, SD-Turbo and their inpainting models.

    python -m export.stable_diffusion CHECKPOINT -o FOLDER [--modules unet vae_decoder]

Captured are the text encoder, the U-Net and both halves of the VAE, in float32: weights in half precision are
widened at loading. Guidance doubles the batch of the U-Net.
"""

from __future__ import annotations

import sys

from export.recipe import run

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
NOTES = {
    "encoder_hidden_states": "the last hidden state of the text encoder, after its final norm",
    "condition": "inpainting: the mask, 1 where something new is drawn, and the latents of the "
    "masked picture",
    "vae_decoder": "takes latents divided by the scaling factor",
}


def main(arguments: list[str] | None = None) -> int:
    """Run with the given command-line arguments; the exit status."""
    return run(__doc__, PIPELINES, NOTES, arguments)


if __name__ == "__main__":
    sys.exit(main())
