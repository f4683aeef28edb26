"""``fastdiff generate``: pictures from a prompt."""

from __future__ import annotations

import argparse

from fastdiff.cli.values import number, on_terminal, whole

SUMMARY = "generate pictures from a prompt with an engine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("engine", metavar="ENGINE", help="engine folder, as fastdiff build writes it")
    parser.add_argument("prompt", metavar="PROMPT", help="what the picture shows")
    parser.add_argument(
        "-o",
        "--output",
        metavar="out.png",
        default="out.png",
        help="file to write; an existing one is replaced. With --num 3: out-1.png, out-2.png, out-3.png "
        "(default: out.png)",
    )
    parser.add_argument("--negative", metavar="TEXT", default="", help="what the picture does not show")
    parser.add_argument("--steps", metavar="N", type=whole, default=20, help="sampler steps (default: 20)")
    parser.add_argument(
        "--sampler", metavar="NAME", help="ddim, pndm, euler or dpmpp_2m (default: the checkpoint's own)"
    )
    parser.add_argument(
        "--guidance",
        metavar="G",
        type=number,
        default=5.0,
        help="classifier-free guidance scale; 1 switches it off and halves the time (default: 5)",
    )
    parser.add_argument(
        "--seed", metavar="S", type=whole, help="seed of the noise (default: drawn, and printed)"
    )
    parser.add_argument(
        "--num", metavar="N", type=whole, default=1, help="pictures in one batch (default: 1)"
    )
    parser.add_argument("--height", metavar="H", type=whole, help="pixels (default: the engine's)")
    parser.add_argument("--width", metavar="W", type=whole, help="pixels (default: the engine's)")
    parser.add_argument("--eta", metavar="E", type=number, default=0.0, help="η of ddim, 0 to 1 (default: 0)")
    parser.add_argument("--threads", metavar="T", type=whole, help="CPU threads (default: every core)")


def run(arguments: argparse.Namespace) -> None:
    """Generate, write and name the pictures. Raises FastdiffError before anything is written."""
    from fastdiff.image import check_output
    from fastdiff.pipeline import load

    check_output(arguments.output)
    pipe = load(arguments.engine, arguments.threads)
    result = pipe(
        arguments.prompt,
        negative=arguments.negative,
        steps=arguments.steps,
        sampler=arguments.sampler,
        guidance=arguments.guidance,
        seed=arguments.seed,
        num=arguments.num,
        height=arguments.height,
        width=arguments.width,
        eta=arguments.eta,
        progress=on_terminal(),
    )
    names = result.save(arguments.output)
    settings, timings = result.metadata[0]["settings"], result.timings
    step = sum(timings.steps) / len(timings.steps)
    print(*names, sep="\n")
    print(
        f"seed {result.seed}, {settings['width']} x {settings['height']}, {settings['steps']} steps of "
        f"{settings['sampler']}, {1000 * step:.1f} ms per step, {timings.total:.2f} s"
    )
