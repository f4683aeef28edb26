"""The options of ``fastdiff generate`` for approximate accelerations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli.values import whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdiff.preview import Preview

__all__ = ["add_approximations", "chosen_deep_cache", "preview_files"]


def add_approximations(parser: argparse.ArgumentParser) -> None:
    """Add the options, in a group of their own."""
    group = parser.add_argument_group(
        "approximations", "faster, and not quite the same picture; docs/approximations.md has what each costs"
    )
    group.add_argument(
        "--deep-cache",
        metavar="N",
        help="evaluate the whole model in every N-th step and its outermost layers in those between, such as "
        "3; 3,center=8,power=1.4 puts the whole evaluations closer together around the 8th; for engines of "
        "fastdiff build --deep-cache",
    )
    group.add_argument(
        "--vae",
        metavar="NAME",
        help="tiny decodes the pictures with the engine's tiny autoencoder, for engines of fastdiff build "
        "--preview-vae (default: the model's own)",
    )
    group.add_argument(
        "--previews",
        metavar="DIR",
        help="write pictures of the steps into this folder, as step-003.png: what the model then expects, "
        "decoded by a tiny autoencoder, or without one a pixel for each latent",
    )
    group.add_argument(
        "--preview-every", metavar="K", type=whole, help="a preview of every K-th step (default: 1)"
    )


def preview_files(arguments: argparse.Namespace) -> Preview | None:
    """What writes previews into the folder that was asked for, which must exist. Raises FastdiffError."""
    from fastdiff.errors import InputError, OutputError
    from fastdiff.image import check_output, numbered, write_png

    if arguments.previews is None:
        if arguments.preview_every is not None:
            raise InputError("--preview-every without --previews: give the folder of the pictures")
        return None
    folder = Path(arguments.previews)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--previews: {folder} is a file: give a folder")
    if not folder.is_dir():
        raise OutputError(f"--previews: folder {folder} does not exist; create it first")
    check_output(folder / "step-001.png")

    def write(step: int, total: int, pictures: list[Image]) -> None:
        names = numbered(folder / f"step-{step:03}.png", len(pictures))
        for name, picture in zip(names, pictures, strict=True):
            write_png(name, picture, {"step": step, "total": total})

    return write


def chosen_deep_cache(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The fields of a DeepCache, whose values are checked with the call. Raises InputError."""
    from fastdiff.errors import InputError

    text: str | None = arguments.deep_cache
    if text is None:
        return None
    every, *others = text.split(",")
    try:
        pairs = [part.split("=") for part in others]
        return {"every": int(every), **{name.strip(): float(value) for name, value in pairs}}
    except ValueError:
        raise InputError(
            f"--deep-cache is {text!r}: give a whole number, such as 3, or 3,center=8,power=1.4"
        ) from None
