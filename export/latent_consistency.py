"""Recipe for latent consistency models: two to eight steps, guidance as an input.

    python -m export.latent_consistency CHECKPOINT -o FOLDER [--modules unet]

Captured are the text encoder, the U-Net and both halves of the VAE, in float32. The U-Net's batch is never
doubled.
"""

from __future__ import annotations

import sys

from export.recipe import run

PIPELINES = ("LatentConsistencyModelPipeline", "StableDiffusionXLPipeline")
NOTES = {
    "timestep_cond": "sine and cosine embedding of the guidance scale less 1: fastdiff.conditioning",
}


def main(arguments: list[str] | None = None) -> int:
    """Run with the given command-line arguments; the exit status."""
    return run(__doc__, PIPELINES, NOTES, arguments)


if __name__ == "__main__":
    sys.exit(main())
