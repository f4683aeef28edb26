"""``fastdiff inpaint``: a part of a picture painted anew."""

from __future__ import annotations

import argparse

from fastdiff.cli.calls import add_call, add_fit, chosen_call, open_pipeline, write
from fastdiff.cli.values import number, whole

SUMMARY = "paint a part of a picture anew"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("engine", metavar="ENGINE", help="engine folder, as fastdiff build writes it")
    parser.add_argument("image", metavar="IMAGE", help="the picture, a PNG or JPEG file")
    parser.add_argument("mask", metavar="MASK", help="a picture of the same size, white where to paint")
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help="what the result shows; none for an engine that takes none",
    )
    parser.add_argument(
        "--strength",
        metavar="X",
        type=number,
        default=1.0,
        help="share of the steps that is run; 1 starts from noise alone (default: 1)",
    )
    add_fit(parser)
    parser.add_argument(
        "--mask-blur",
        metavar="R",
        type=number,
        default=0.0,
        help="radius in pixels by which the mask's rim is softened (default: 0)",
    )
    parser.add_argument(
        "--overlay", action="store_true", help="paste the picture's own pixels back outside the mask"
    )
    parser.add_argument(
        "--crop-padding",
        metavar="N",
        type=whole,
        help="paint only the mask's surroundings, N pixels around it, at --height and --width (default: all)",
    )
    add_call(parser, "the picture's, with --crop-padding the engine's")


def run(arguments: argparse.Namespace) -> None:
    """Paint, write and name the pictures. Raises FastdiffError before anything is written."""
    from fastdiff.image import check_output

    check_output(arguments.output)
    call = chosen_call(arguments)
    pipe = open_pipeline(arguments, "inpaint")
    result = pipe.inpaint(
        arguments.image,
        arguments.mask,
        arguments.prompt,
        strength=arguments.strength,
        fit=arguments.fit,
        mask_blur=arguments.mask_blur,
        overlay=arguments.overlay,
        crop_padding=arguments.crop_padding,
        **call,
    )
    pipe.close()
    write(result, arguments.output)
