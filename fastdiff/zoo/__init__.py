"""Checkpoints that ship with the package, in the diffusers folder layout."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from fastdiff.errors import CheckpointError

__all__ = ["SHIPPED", "resolve"]

SHIPPED = {"scenes": Path(__file__).parent / "scenes"}
"""Name to folder. ``scenes``: 64×64 pictures of coloured shapes, see its README.md for data and figures."""


def resolve(name: str) -> Path:
    """The folder of the shipped checkpoint ``name``.

    Raises:
        CheckpointError: no checkpoint of that name ships, or the installation lacks its files.

    """
    if name not in SHIPPED:
        near = get_close_matches(name, SHIPPED, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped are: {', '.join(sorted(SHIPPED))}"
        raise CheckpointError(
            f"{name!r} is neither a checkpoint folder, nor a file, nor a shipped checkpoint; {hint}"
        )
    folder = SHIPPED[name]
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"the shipped checkpoint {name!r} is missing from {folder}; reinstall fastdiff")
    return folder
