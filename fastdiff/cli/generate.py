"""``fastdiff generate``: pictures from a prompt."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fastdiff.cli.calls import add_call, chosen_call, open_pipeline, write
from fastdiff.cli.values import named_as_typed, number, whole

if TYPE_CHECKING:
    from fastdiff.devices import Device
    from fastdiff.pipeline import Pipeline
    from fastdiff.result import Result
    from fastdiff.workers.pool import PipelinePool

SUMMARY = "generate pictures from a prompt with an engine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("engine", metavar="ENGINE", help="engine folder, as fastdiff build writes it")
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help="what the picture shows; none for an engine that takes none",
    )
    add_call(parser)
    group = parser.add_argument_group("tasks", "variations, large pictures, and a second model")
    group.add_argument(
        "--variation-seed", metavar="S", type=whole, help="seed whose noise is mixed in, for variations"
    )
    group.add_argument(
        "--variation-strength", metavar="X", type=number, help="how much of it, 0 to 1, such as 0.1"
    )
    group.add_argument(
        "--hires",
        metavar="SCALE",
        type=number,
        help="enlarge the picture so many times and paint its details anew, such as 2",
    )
    group.add_argument(
        "--hires-method",
        metavar="NAME",
        help="with --hires: latent_nearest, latent_bilinear, latent_bicubic, or of pixels nearest, bilinear, "
        "bicubic, lanczos (default: latent_bilinear)",
    )
    group.add_argument(
        "--hires-strength",
        metavar="X",
        type=number,
        help="with --hires: share of the steps of the second pass (default: 0.7)",
    )
    group.add_argument(
        "--refiner",
        metavar="ENGINE",
        help="engine that goes on where the first one stops, such as SDXL's; LoRAs, embeddings, control and "
        "previews are the first engine's",
    )
    group.add_argument(
        "--refiner-start",
        metavar="X",
        type=number,
        help="with --refiner: share of the way that the first engine goes (default: 0.8)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Generate, write and name the pictures. Raises FastdiffError before anything is written."""
    from fastdiff.image import check_output
    from fastdiff.warn import each_once

    check_output(arguments.output)
    call, extra = chosen_call(arguments), _chosen_tasks(arguments)
    pipe = open_pipeline(arguments, None if arguments.hires is None else "--hires")
    if arguments.refiner is not None:
        with each_once():
            result = _refined(arguments, pipe, {**call, **extra})
    elif arguments.hires is not None:
        second = {"method": arguments.hires_method, "strength": arguments.hires_strength}
        second = {name: value for name, value in second.items() if value is not None}
        with named_as_typed(scale="--hires", method="--hires-method", strength="--hires-strength"):
            result = pipe.high_resolution(arguments.prompt, scale=arguments.hires, **second, **call)
    else:
        result = pipe(arguments.prompt, **call, **extra)
    pipe.close()
    write(result, arguments.output)


def _chosen_tasks(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of variations. Raises InputError for options that do not go together."""
    from fastdiff.errors import InputError
    from fastdiff.tasks.variations import check_variation

    for name, needs in (
        ("hires_method", "hires"),
        ("hires_strength", "hires"),
        ("refiner_start", "refiner"),
    ):
        if getattr(arguments, name) is not None and getattr(arguments, needs) is None:
            raise InputError(f"--{name.replace('_', '-')} without --{needs}: give both, or leave it out")
    given = check_variation(arguments.variation_seed, arguments.variation_strength)
    if arguments.hires is not None and (given or arguments.refiner is not None):
        other = "--variation-seed" if given else "--refiner"
        raise InputError(f"--hires with {other}: these do not go together yet; leave one out")
    if arguments.refiner is not None and len(_devices(arguments)) > 1 and not arguments.split_guidance:
        raise InputError("--refiner with several --devices at once: use one device, or --split-guidance")
    return given.settings() if given else {}


def _devices(arguments: argparse.Namespace) -> tuple[Device, ...]:
    from fastdiff.devices import parse_devices

    return () if arguments.devices is None else parse_devices(arguments.devices)


def _refined(arguments: argparse.Namespace, pipe: Pipeline | PipelinePool, call: dict[str, Any]) -> Result:
    """The picture that the refiner makes of what the first engine began.

    LoRAs and embeddings are the first engine's. All options are checked before it begins.
    """
    from fastdiff.engine_dir import open_engine
    from fastdiff.pipeline import load
    from fastdiff.tasks.refine import check_start, divided, refine

    start = check_start(0.8 if arguments.refiner_start is None else arguments.refiner_start)
    second = open_engine(arguments.refiner)
    first, rest = divided(pipe.engine.manifest, second.manifest, arguments.prompt, start, call)
    begun = pipe(arguments.prompt, **first, denoising_end=start, output="latents")
    pipe.close()
    refiner = load(arguments.refiner, arguments.threads, *_devices(arguments))
    refiner.tile = arguments.tile
    result = refine(refiner, begun, arguments.prompt, start, rest)
    refiner.close()
    return result
