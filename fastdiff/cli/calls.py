"""What all commands share that make pictures: the options of a call, its engine and what is said of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fastdiff.cli.approximations import add_approximations, chosen_deep_cache, preview_files
from fastdiff.cli.control import add_control, chosen_control
from fastdiff.cli.guidance import add_guidance, chosen_guidance
from fastdiff.cli.prompts import add_prompt_options, chosen_prompt_options, load_embeddings
from fastdiff.cli.values import lora, number, on_terminal, option, whole

if TYPE_CHECKING:
    from fastdiff.pipeline import Pipeline
    from fastdiff.result import Result
    from fastdiff.workers.pool import PipelinePool

__all__ = ["add_call", "add_fit", "chosen_call", "open_pipeline", "write"]


def add_call(parser: argparse.ArgumentParser, sizes: str = "the engine's") -> None:
    """Add the options of a call; ``sizes`` says whose height and width are the default."""
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
        "--sampler",
        metavar="NAME",
        help="such as dpmpp_2m; fastdiff samplers lists all (default: the checkpoint's own)",
    )
    parser.add_argument(
        "--sampler-option",
        metavar="KEY=VALUE",
        type=option,
        action="append",
        default=[],
        help="a setting of the sampler in place of the checkpoint's, such as use_karras_sigmas=true or "
        "sigmas=14.6,3,0.5; may be given several times; fastdiff samplers NAME lists them",
    )
    parser.add_argument(
        "--seed", metavar="S", type=whole, help="seed of the noise (default: drawn, and printed)"
    )
    parser.add_argument("--num", metavar="N", type=whole, default=1, help="pictures (default: 1)")
    parser.add_argument(
        "--class-label",
        metavar="N",
        type=whole,
        help="the class of the pictures, for an engine that knows classes",
    )
    parser.add_argument("--height", metavar="H", type=whole, help=f"pixels (default: {sizes})")
    parser.add_argument("--width", metavar="W", type=whole, help=f"pixels (default: {sizes})")
    parser.add_argument(
        "--eta",
        metavar="E",
        type=number,
        help="share of fresh noise, 0 to 1, for samplers that have one (default: the sampler's own)",
    )
    parser.add_argument(
        "--lora",
        metavar="FILE[:SCALE]",
        type=lora,
        action="append",
        default=[],
        help="a LoRA's .safetensors file and how much of its effect to have (default: 1); may be given "
        "several times",
    )
    parser.add_argument("--threads", metavar="T", type=whole, help="CPU threads (default: every core)")
    parser.add_argument(
        "--tile",
        metavar="auto|on|off|N",
        default="auto",
        help="decode and encode pictures in tiles of N pixels, which takes less memory (default: auto, when "
        "memory asks for it)",
    )
    parser.add_argument(
        "--devices",
        metavar="LIST",
        help="GPUs by number, such as 0,1, or cpu,cpu: a process on each takes the next of --num pictures "
        "when it is free. One device computes all as one batch (default: GPU 0 for an engine that needs one)",
    )
    parser.add_argument(
        "--batch",
        metavar="B",
        type=whole,
        help="pictures at once on each of --devices (default: 1)",
    )
    parser.add_argument(
        "--split-guidance",
        action="store_true",
        help="use the two --devices for one picture: the half without the prompt runs on the second",
    )
    add_guidance(parser)
    add_prompt_options(parser)
    add_control(parser)
    add_approximations(parser)


def add_fit(parser: argparse.ArgumentParser) -> None:
    """Add what is done with pictures of another size."""
    parser.add_argument(
        "--fit",
        metavar="HOW",
        choices=("exact", "resize", "crop", "fill"),
        default="exact",
        help="for a picture of another size than wanted: exact refuses it, resize changes its aspect, "
        "crop cuts off, fill stretches its rim (default: exact)",
    )


def chosen_call(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as arguments of the pipeline, without the prompt. Raises InputError."""
    return {
        "negative": arguments.negative,
        "steps": arguments.steps,
        "sampler": arguments.sampler,
        "guidance": chosen_guidance(arguments),
        "seed": arguments.seed,
        "num": arguments.num,
        "height": arguments.height,
        "width": arguments.width,
        "eta": arguments.eta,
        "sampler_options": dict(arguments.sampler_option),
        "class_label": arguments.class_label,
        "progress": on_terminal(),
        **chosen_prompt_options(arguments),
        **chosen_control(arguments),
        "deep_cache": chosen_deep_cache(arguments),
        "vae": arguments.vae,
        **_chosen_previews(arguments),
    }


def _chosen_previews(arguments: argparse.Namespace) -> dict[str, Any]:
    """What writes the previews, where they were asked for."""
    preview = preview_files(arguments)
    if preview is None:
        return {}
    return {
        "preview": preview,
        "preview_every": 1 if arguments.preview_every is None else arguments.preview_every,
    }


def open_pipeline(arguments: argparse.Namespace, task: str | None = None) -> Pipeline | PipelinePool:
    """The engine on its devices, with its LoRAs and tiles. Raises FastdiffError.

    ``task`` names what several devices at once cannot do.
    """
    from fastdiff.errors import InputError
    from fastdiff.pipeline import Pipeline

    pipe = _opened(arguments, task)
    if isinstance(pipe, Pipeline):
        pipe.tile = arguments.tile
    for file, scale in arguments.lora:
        if scale == 0:
            raise InputError(f"--lora {file}:0 has no effect: leave it out, or give another scale")
        pipe.load_lora(file, scale)
    load_embeddings(pipe, arguments)
    return pipe


def write(result: Result, output: str) -> None:
    """Write the pictures; print their names and a line on how they came about."""
    from fastdiff.samplers import find_sampler

    names = result.save(output)
    settings, timings = result.metadata[0]["settings"], result.timings
    adaptive = find_sampler(settings["sampler"]).adaptive is not None
    steps = len(timings.steps) if adaptive else settings["steps"]
    asked = f"{steps} step{'s' * (steps != 1)}"
    if "task" in result.metadata[0]:  # which runs a part of the steps, or more than them
        asked = f"{len(timings.steps)} evaluations"
    step = sum(timings.steps) / len(timings.steps)
    size = result.images[0]
    print(*names, sep="\n")
    print(
        f"seed {result.seed}, {size.width} x {size.height}, {asked} of "
        f"{settings['sampler']}, {1000 * step:.1f} ms per step, {timings.total:.2f} s"
    )


def _check_several(arguments: argparse.Namespace, task: str | None) -> None:
    """Raises InputError for what several devices at once cannot do, before a process starts."""
    from fastdiff.errors import InputError

    if task is not None:
        raise InputError(
            f"{task} with {arguments.num} pictures on several --devices: it runs on one, which takes all of "
            "--num as one batch; name one device"
        )
    if arguments.tile != "auto":
        raise InputError("--tile on several devices at once: use one device, or leave it out")
    if arguments.previews is not None:
        raise InputError("--previews with several --devices: leave one of them out")


def _opened(arguments: argparse.Namespace, task: str | None) -> Pipeline | PipelinePool:
    """The engine on the devices that were asked for, on no more of them than there are jobs."""
    from fastdiff.devices import check_devices, parse_devices
    from fastdiff.engine_dir import open_engine
    from fastdiff.errors import InputError
    from fastdiff.pipeline import load

    devices = parse_devices(arguments.devices) if arguments.devices is not None else ()
    if arguments.split_guidance and len(devices) != 2:
        raise InputError(f"--split-guidance with {len(devices)} devices: give two, such as --devices 0,1")
    if arguments.batch is not None and (arguments.split_guidance or len(devices) < 2):
        raise InputError("--batch is for several --devices with a queue: leave it out, or give more devices")
    if arguments.batch is not None and arguments.batch < 1:
        raise InputError(f"batch is {arguments.batch}: it must be 1 or more")
    if arguments.split_guidance:
        return load(arguments.engine, arguments.threads, *devices)
    if len(devices) > 1:
        engine = open_engine(arguments.engine, check_machine=False)
        check_devices(engine.manifest, devices)
        batch = arguments.batch or 1
        devices = devices[: max(1, -(-arguments.num // batch))]
        if len(devices) > 1:
            _check_several(arguments, task)
            from fastdiff.workers.pool import PipelinePool

            return PipelinePool(engine, devices, arguments.threads, batch)
    return load(arguments.engine, arguments.threads, *devices)
