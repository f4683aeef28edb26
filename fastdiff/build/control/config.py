"""The config of a folder in diffusers' layout, and what of it must agree with a U-Net's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastdiff.errors import CheckpointError

__all__ = ["read_config", "refuse"]


def read_config(folder: Path, kind: str, what: str) -> dict[str, Any]:
    """``config.json`` of a folder that holds a ``kind``. Raises CheckpointError.

    ``what`` it is in words, such as "a ControlNet".
    """
    file = folder / "config.json"
    if not folder.is_dir():
        found = "is a file" if folder.is_file() else "does not exist"
        raise CheckpointError(f"{folder} {found}: give the folder of {what}, with config.json and weights")
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: give the folder of {what} in diffusers' layout")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not readable JSON ({error}): download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds no JSON object: download it again")
    found = config.get("_class_name", (config.get("architectures") or [None])[0])
    if found != kind:
        raise CheckpointError(f"{folder} holds a {found}: {what} must be a {kind}")
    return config


def refuse(folder: Path, what: str, found: object, wanted: object) -> CheckpointError:
    """The error for a value that is not the U-Net's."""
    return CheckpointError(
        f"{folder}: {what} is {found}, that of the checkpoint's U-Net is {wanted}: give one that was trained"
        " for this kind of checkpoint"
    )
