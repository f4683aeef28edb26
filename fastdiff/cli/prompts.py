"""The options of commands that draw: how prompts are read, and what SDXL is told of the picture."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fastdiff.cli.values import number, whole

if TYPE_CHECKING:
    from fastdiff.pipeline import Pipeline
    from fastdiff.workers.pool import PipelinePool

__all__ = ["OPTIONS", "add_prompt_options", "chosen_prompt_options", "load_embeddings"]

_SIZES = (
    ("original-size", "original_size", "size", "size that the picture shall look as if taken at"),
    ("crop", "crops_coords_top_left", "crop", "what shall look cut off at the top and the left"),
    ("target-size", "target_size", "size", "size that it is for"),
)
OPTIONS = {
    f"{negative}{name}": f"--{negative.replace('_', '-')}{option}"
    for option, name, _, _ in _SIZES
    for negative in ("", "negative_")
}
"""Arguments of a pipeline by name whose options are called otherwise."""


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, in two groups."""
    group = parser.add_argument_group(
        "prompts", "how prompts are read: (word:1.3) and [word] weigh words, BREAK ends a chunk of 75 tokens"
    )
    group.add_argument(
        "--clip-skip",
        metavar="N",
        type=whole,
        help="take the text encoder's hidden states N layers earlier, as in diffusers: 1 is what others call "
        "clip skip 2 (default: 0)",
    )
    group.add_argument(
        "--no-weighting", action="store_true", help="brackets and BREAK are text, as in plain diffusers"
    )
    group.add_argument(
        "--cut-prompts",
        action="store_true",
        help="cut a prompt that is longer than the text encoder's window, as diffusers does, in place of "
        "reading it in chunks",
    )
    group.add_argument(
        "--embedding",
        metavar="FILE[=TOKEN]",
        action="append",
        default=[],
        help="a textual inversion, .safetensors, with the word that stands for it in prompts (default: the "
        "one that it names, else the file's name); may be given several times",
    )
    group.add_argument("--prompt-2", metavar="TEXT", help="what SDXL's second text encoder reads instead")
    group.add_argument("--negative-2", metavar="TEXT", help="the same for the negative prompt")
    group = parser.add_argument_group("sizes", "what SDXL is told of the picture, in pixels")
    for option, name, kind, what in _SIZES:
        convert, metavar, default = (
            (_size, "HxW", "the picture's") if kind == "size" else (_crop, "TOP,LEFT", "0,0")
        )
        group.add_argument(
            f"--{option}", dest=name, metavar=metavar, type=convert, help=f"{what} (default: {default})"
        )
        group.add_argument(
            f"--negative-{option}",
            dest=f"negative_{name}",
            metavar=metavar,
            type=convert,
            help="the same for the half of guidance without the prompt",
        )
    group.add_argument(
        "--aesthetic-score", metavar="S", type=number, help="what a refiner is told, 1 to 10 (default: 6)"
    )
    group.add_argument(
        "--negative-aesthetic-score",
        metavar="S",
        type=number,
        help="the same for the half of guidance without the prompt (default: 2.5)",
    )


def chosen_prompt_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of a pipeline, those that were given."""
    names = [name for _, name, _, _ in _SIZES]
    names += [f"negative_{name}" for name in names]
    names += ["clip_skip", "prompt_2", "negative_2", "aesthetic_score", "negative_aesthetic_score"]
    found = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.no_weighting:
        found["weighting"] = False
    if arguments.cut_prompts:
        found["long_prompts"] = "cut"
    return found


def load_embeddings(pipe: Pipeline | PipelinePool, arguments: argparse.Namespace) -> None:
    """Load the files of ``--embedding``. Raises InputError, also for a word that is in no prompt."""
    from fastdiff.errors import InputError
    from fastdiff.prompts.textual_inversion import Inversions

    texts = (arguments.prompt, arguments.negative, arguments.prompt_2, arguments.negative_2)
    for text in arguments.embedding:
        path, equals, token = text.partition("=")
        word = pipe.load_textual_inversion(path, token if equals else None)
        if not Inversions.holds(word, [each for each in texts if each]):
            raise InputError(
                f"--embedding {text}: no prompt holds its word {word!r}; write it into the prompt, or leave "
                "the option out"
            )


def _size(text: str) -> tuple[int, int]:
    height, times, width = text.lower().partition("x")
    if not times or not height.isdecimal() or not width.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 1024x768")
    return int(height), int(width)


def _crop(text: str) -> tuple[int, int]:
    top, comma, left = text.partition(",")
    if not comma or not top.isdecimal() or not left.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not TOP,LEFT, such as 0,128")
    return int(top), int(left)
