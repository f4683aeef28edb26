"""Reading T2I-Adapters: their configs, and whether their features fit the U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdiff.build.control.config import read_config, refuse
from fastdiff.control.spec import FeatureSpec, T2IAdapterSpec
from fastdiff.errors import CheckpointError

__all__ = ["read_t2i_adapter"]


def read_t2i_adapter(folder: Path, factor: int, multiple: int, unet: dict[str, Any]) -> T2IAdapterSpec:
    """The T2I-Adapter of a folder. Raises CheckpointError.

    ``factor`` is the VAE's, ``multiple`` what the sides of pictures are multiples of.
    """
    import torch
    from diffusers import T2IAdapter

    config = read_config(folder, "T2IAdapter", "a T2I-Adapter")
    try:
        with torch.device("meta"):
            adapter = T2IAdapter.from_config(config)
            side, channels = 64 * int(adapter.total_downscale_factor), int(config.get("in_channels", 3))
            given = adapter(torch.empty(1, channels, side, side))
    except Exception as error:  # whatever the library raises about a config, the config is at fault
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: T2IAdapter refuses its config ({reason})") from error
    if channels not in (1, 3):
        raise CheckpointError(f"{folder}: in_channels is {channels}: it must be 1 or 3, as a picture has")
    shrinks = [(x.shape[1], side, factor * x.shape[2]) for x in given]
    if any(numerator % denominator for _, numerator, denominator in shrinks):
        raise CheckpointError(f"{folder}: its first feature is larger than the latents: it fits no U-Net")
    features = tuple(FeatureSpec(width, top // bottom) for width, top, bottom in shrinks)
    if any(multiple % (factor * feature.divisor) for feature in features):
        coarsest = factor * max(feature.divisor for feature in features)
        raise CheckpointError(
            f"{folder}: it needs sides in multiples of {coarsest}, the checkpoint makes pictures in multiples"
            f" of {multiple}: give an adapter that was trained for this kind of checkpoint"
        )
    wanted = _places(unet)[: len(features)]
    if features != wanted:
        raise refuse(folder, "the shape of its features", _text(features), _text(wanted))
    return T2IAdapterSpec(folder.resolve().name, channels, features)


def _places(config: dict[str, Any]) -> tuple[FeatureSpec, ...]:
    """What can be added on a U-Net's way down: inside blocks with attention, behind those without, and to
    the middle.
    """
    channels, kinds = config["block_out_channels"], config["down_block_types"]
    found = []
    for level, (width, kind) in enumerate(zip(channels, kinds, strict=True)):
        inside = "CrossAttn" in kind or level + 1 == len(channels)
        found.append(FeatureSpec(int(width), 2 ** (level if inside else level + 1)))
    return (*found, FeatureSpec(int(channels[-1]), 2 ** (len(channels) - 1)))


def _text(features: tuple[FeatureSpec, ...]) -> str:
    return " ".join(f"{feature.channels}/{feature.divisor}" for feature in features)
