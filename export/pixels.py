"""Recipe for models on pixels without a prompt: DDPM, DDIM, consistency models, with or without classes.

    python -m export.pixels CHECKPOINT -o FOLDER

Captured is the U-Net, in float32, with symbolic sizes also where it was trained at one.
"""

from __future__ import annotations

import sys

from export.recipe import run

PIPELINES = ("DDPMPipeline",)
NOTES = {
    "class_labels": "the number of a class",
    "sample": "pixels, about -1 to 1",
}


def main(arguments: list[str] | None = None) -> int:
    """Run with the given command-line arguments; the exit status."""
    return run(__doc__, PIPELINES, NOTES, arguments)


if __name__ == "__main__":
    sys.exit(main())
