"""Paths of a U-Net's layers in the original code, which counts blocks through: ``input_blocks.4.1``.

A level of the way down has its residual blocks and, but for the last, one block that halves the picture;
``input_blocks.0`` is the first convolution. A level of the way up ends with the doubling, inside its last
block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["original_paths"]

_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_INSIDE = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def original_paths(paths: Iterable[str]) -> dict[str, str]:
    """The layers' paths by those in the original code, as far as it has such layers."""
    known = set(paths)
    counts = {way: _resnets(known, way) for way in ("down_blocks", "up_blocks")}
    named = ((_original(path, counts, known), path) for path in known)
    return {original: path for original, path in named if original is not None}


def _resnets(paths: set[str], way: str) -> list[int]:
    """How many residual blocks each level of a way has."""
    found: dict[int, int] = {}
    for path in paths:
        match = _INSIDE.fullmatch(path)
        if match and match[1] == way and match[3] == "resnets":
            level = int(match[2])
            found[level] = max(found.get(level, 0), int(match[4]) + 1)
    return [found.get(level, 0) for level in range(max(found, default=-1) + 1)]


def _original(path: str, counts: dict[str, list[int]], known: set[str]) -> str | None:
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    if match := _MIDDLE.fullmatch(path):
        kind, index, rest = match[1], int(match[2]), match[3]
        if kind == "attentions":
            return f"middle_block.{2 * index + 1}.{rest}"
        return _in_resnet(f"middle_block.{2 * index}", rest)
    match = _INSIDE.fullmatch(path)
    if match is None:
        return None
    way, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if level >= len(counts[way]):
        return None
    if way == "down_blocks":
        first = 1 + sum(count + 1 for count in counts[way][:level])
        if kind == "downsamplers":
            return f"input_blocks.{first + counts[way][level]}.0.op" if rest == "conv" else None
        block = f"input_blocks.{first + index}"
    else:
        first = sum(counts[way][:level])
        if kind == "upsamplers":
            place = 2 if any(p.startswith(f"up_blocks.{level}.attentions.") for p in known) else 1
            return f"output_blocks.{first + counts[way][level] - 1}.{place}.{rest}"
        block = f"output_blocks.{first + index}"
    if kind == "resnets":
        return _in_resnet(f"{block}.0", rest)
    return f"{block}.1.{rest}" if kind == "attentions" else None


def _in_resnet(block: str, layer: str) -> str | None:
    return f"{block}.{_RESNET[layer]}" if layer in _RESNET else None
