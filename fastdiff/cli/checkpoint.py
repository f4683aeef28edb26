"""Options of commands that read a checkpoint: which of its weights, and what a single file lacks."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_checkpoint_options", "checkpoint_options"]

_OPTIONS = ("config", "tokenizer", "variant", "ema")


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("checkpoint", "which weights are read, and what a single file lacks")
    group.add_argument(
        "--config",
        metavar="FOLDER",
        help="diffusers folder with the configs of a single file (default: the published ones of its kind)",
    )
    group.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="tokenizer of a single file (default: a folder tokenizer beside it, else CLIP's in the cache of "
        "Hugging Face or in the package open_clip)",
    )
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="weights of a folder, such as fp16 or non_ema (default: the plain ones, else fp16)",
    )
    group.add_argument(
        "--ema",
        action="store_true",
        help="the moving average of the U-Net's weights: model_ema in a file, the part unet_ema in a folder",
    )


def checkpoint_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``load_checkpoint``, those that were given."""
    values = {name: getattr(arguments, name) for name in _OPTIONS}
    return {name: value for name, value in values.items() if value not in (None, False)}
