"""``fastdiff img2img``: a picture painted anew."""

from __future__ import annotations

import argparse

from fastdiff.cli.calls import add_call, add_fit, chosen_call, open_pipeline, write
from fastdiff.cli.values import named_as_typed, number, whole

SUMMARY = "paint a picture anew after a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("engine", metavar="ENGINE", help="engine folder, as fastdiff build writes it")
    parser.add_argument("image", metavar="IMAGE", help="the picture, a PNG or JPEG file")
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
        help="share of the steps that is run, up to 1: the more, the less stays (default: 0.8, "
        "0.3 with --upscale)",
    )
    add_fit(parser)
    parser.add_argument(
        "--upscale", metavar="SCALE", type=number, help="enlarge the picture so many times, such as 2"
    )
    parser.add_argument(
        "--upscale-method",
        metavar="NAME",
        help="with --upscale: nearest, bilinear, bicubic or lanczos, of latents latent_nearest, "
        "latent_bilinear or latent_bicubic (default: lanczos)",
    )
    parser.add_argument(
        "--noise-level",
        metavar="N",
        type=whole,
        help="with --upscale and a model made for it: noise that covers the picture's details (default: 20)",
    )
    add_call(parser, "the picture's")


def run(arguments: argparse.Namespace) -> None:
    """Paint, write and name the pictures. Raises FastdiffError before anything is written."""
    from fastdiff.errors import InputError
    from fastdiff.image import check_output

    check_output(arguments.output)
    call = chosen_call(arguments)
    given = {
        "strength": arguments.strength,
        "method": arguments.upscale_method,
        "noise_level": arguments.noise_level,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, option in (("method", "--upscale-method"), ("noise_level", "--noise-level")):
        if arguments.upscale is None and name in given:
            raise InputError(f"{option} without --upscale: give both, or leave it out")
    if arguments.upscale is not None:
        for name in ("height", "width"):
            if call.pop(name) is not None:
                raise InputError(f"--{name} with --upscale: the scale says how large; leave one out")
        if arguments.fit != "exact":
            raise InputError("--fit with --upscale, which keeps the aspect: leave it out")
    pipe = open_pipeline(arguments, "img2img")
    if arguments.upscale is not None:
        with named_as_typed(scale="--upscale", method="--upscale-method"):
            result = pipe.upscale(arguments.image, arguments.prompt, scale=arguments.upscale, **given, **call)
    else:
        result = pipe.img2img(arguments.image, arguments.prompt, fit=arguments.fit, **given, **call)
    pipe.close()
    write(result, arguments.output)
