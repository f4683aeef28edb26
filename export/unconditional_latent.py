"""Recipe for latent diffusion without a prompt, on the latents of a VQ-VAE.

    python -m export.unconditional_latent CHECKPOINT -o FOLDER [--modules vae_decoder vae_quantizer]

Captured are the U-Net, both halves of the VQ-VAE and its quantiser, in float32.
"""

from __future__ import annotations

import sys

from export.recipe import run

PIPELINES = ("LDMPipeline",)
NOTES = {
    "vae_quantizer": "how far a latent is from each code; the nearest has the least score",
    "codes": "the number of the nearest code of each latent pixel",
}


def main(arguments: list[str] | None = None) -> int:
    """Run with the given command-line arguments; the exit status."""
    return run(__doc__, PIPELINES, NOTES, arguments)


if __name__ == "__main__":
    sys.exit(main())
