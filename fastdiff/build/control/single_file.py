"""ControlNets in one file in the original layout, ``control_model.input_blocks…``, by diffusers' converter.

Such a file says nothing of its structure but by its tensors; a ControlNet has that of the U-Net it is for.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from fastdiff.build.weights import quiet
from fastdiff.errors import CheckpointError

__all__ = ["config_like", "is_single_file", "load_controlnet_file"]

_EMBEDDING = (16, 32, 96, 256)
"""Channels of the network that the control image goes through, of all ControlNets in this layout."""


def is_single_file(path: Path) -> bool:
    """Whether a ControlNet is one file, not a folder."""
    return path.suffix == ".safetensors" and path.is_file()


def config_like(unet: dict[str, Any], channels: int) -> dict[str, Any]:
    """The config of a ``ControlNetModel`` for latents of ``channels`` with the blocks of a U-Net."""
    from diffusers import ControlNetModel

    known = inspect.signature(ControlNetModel.__init__).parameters
    shared = {key: value for key, value in unet.items() if key in known}
    own = {"in_channels": channels, "conditioning_embedding_out_channels": _EMBEDDING}
    return {**shared, **own, "_class_name": "ControlNetModel"}


def load_controlnet_file(file: Path, config: dict[str, Any]) -> Any:
    """The file as a ``ControlNetModel`` in float32. Raises CheckpointError for tensors that do not fit."""
    import torch
    from diffusers import ControlNetModel
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} is truncated or corrupted ({reason}): download it again") from error
    if not any(key.endswith("input_hint_block.0.weight") for key in tensors):
        raise CheckpointError(
            f"{file} has no input_hint_block, which a ControlNet in the original layout has: give such a file"
            " or a folder in diffusers' layout"
        )
    try:
        with quiet():
            model = ControlNetModel.from_config(config)
            converted = convert_controlnet_checkpoint(tensors, model.config)
            model.load_state_dict(converted, strict=True)
    except Exception as error:  # whatever the library raises about a file, the file is at fault
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file} does not fit the checkpoint's U-Net ({reason}): give a ControlNet that was trained for"
            " this kind of checkpoint"
        ) from error
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{file}: {name} holds values that are not finite: the file is damaged")
    return model.float().eval().requires_grad_(False)
