"""Recipe for ControlNets, T2I-Adapters and IP-Adapters: write their modules, and the U-Net that takes what
they give, as ONNX.

    python -m export.controlnet CHECKPOINT -o FOLDER --controlnet CONTROLNET [--t2i-adapter ADAPTER]
        [--ip-adapter FILE] [--image-encoder ENCODER]

CHECKPOINT is a diffusers folder or the name of a shipped model. Prints what export/stable_diffusion.py does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from export.stable_diffusion import export_module
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.control import add_control
from fastdiff.errors import FastdiffError


def main(arguments: list[str] | None = None) -> int:
    """Run with the given command-line arguments; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--controlnet", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--t2i-adapter", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--ip-adapter", metavar="FILE")
    parser.add_argument("--image-encoder", metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        checkpoint = add_control(
            load_checkpoint(options.checkpoint),
            controlnets=options.controlnet,
            t2i_adapters=options.t2i_adapter,
            ip_adapter=options.ip_adapter,
            image_encoder=options.image_encoder,
        )
        for name in (*checkpoint.spec.control.modules(), "unet"):
            print(export_module(checkpoint, name, options.output), flush=True)
    except (FastdiffError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
