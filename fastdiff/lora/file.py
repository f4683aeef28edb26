"""Reading a LoRA file for an engine whose layers are known.

A key of the file is looked up among all names that the engine's layers have in any layout, so that one which
matches nothing is an error, and no part of a file is ever left out.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.lora.keys import parse_key
from fastdiff.lora.kohya import kohya_names
from fastdiff.lora.peft import Options, peft_names, plain_stem, read_options
from fastdiff.lora.update import LowRank
from fastdiff.tensors import DTYPES, to_float32

__all__ = ["Lora", "Shapes", "read_lora"]

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Shapes of the weights that can be updated, by module and the path of the layer in it."""


@dataclass(frozen=True)
class Lora:
    """A file that was read: its path, its SHA-256, and the updates of some layers by module and path."""

    path: Path
    sha256: str
    modules: Mapping[str, Mapping[str, LowRank]]

    @property
    def layers(self) -> int:
        """How many layers it updates."""
        return sum(len(layers) for layers in self.modules.values())


@dataclass
class _Layer:
    """What a file has of one layer so far, with the key that it came under by role."""

    keys: dict[str, str]
    tensors: dict[str, NDArray[np.float32]]


def read_lora(path: str | os.PathLike[str], shapes: Shapes) -> Lora:
    """Read a ``.safetensors`` file with a LoRA for the layers of ``shapes``.

    Raises InputError, which names file and key: a file that is missing or damaged, of a kind that is not
    supported, for other layers or other shapes, or with numbers that are not finite.
    """
    file = Path(path)
    digest, tensors, metadata = _read(file)
    try:
        options = read_options(metadata)
        layers = _collect(tensors, _names(shapes))
        modules: dict[str, dict[str, LowRank]] = {}
        for (module, place), layer in layers.items():
            update = _update(layer, shapes[module][place], place, options.get(module))
            modules.setdefault(module, {})[place] = update
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if not modules:
        raise InputError(f"{file} has no tensors: wanted a LoRA's")
    return Lora(file, digest, modules)


def _read(file: Path) -> tuple[str, dict[str, NDArray[np.float32]], dict[str, str]]:
    """SHA-256, tensors in float32 and metadata. Raises InputError."""
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        raw = file.read_bytes()
    except OSError as error:
        raise InputError(f"LoRA file {file} cannot be read: {error.strerror}") from error
    try:
        found = deserialize(raw)  # type: ignore[no-untyped-call]
        with safe_open(str(file), "np") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"LoRA file {file} is no intact safetensors file ({reason})") from error
    digest = hashlib.sha256(raw).hexdigest()
    del raw
    try:
        return digest, {key: _tensor(key, tensor) for key, tensor in found}, metadata
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _tensor(key: str, tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    if tensor["dtype"] not in DTYPES:
        raise InputError(f"{key} has dtype {tensor['dtype']}: wanted F32, F16, BF16 or F64")
    return to_float32(tensor)


def _names(shapes: Shapes) -> dict[str, tuple[str, str]]:
    """Every name that a layer may have in a file, and its module and path."""
    names: dict[str, tuple[str, str]] = {}
    for module, layers in shapes.items():
        for listed in (kohya_names, peft_names):
            for name, path in listed(module, layers):
                names.setdefault(name, (module, path))
    return names


def _collect(
    tensors: Mapping[str, NDArray[np.float32]], names: Mapping[str, tuple[str, str]]
) -> dict[tuple[str, str], _Layer]:
    """What the file has of each layer. Raises InputError for a key that matches nothing, or comes twice."""
    layers: dict[tuple[str, str], _Layer] = {}
    for key, tensor in tensors.items():
        parsed = parse_key(key)
        place = names.get(plain_stem(parsed.stem))
        if place is None:
            raise InputError(
                f"{key} matches no layer of this engine: the LoRA is for another kind of model, or for a"
                " layer that takes none"
            )
        layer = layers.setdefault(place, _Layer({}, {}))
        if parsed.role in layer.keys:
            raise InputError(f"{key} and {layer.keys[parsed.role]} are the same layer's: wanted one of them")
        layer.keys[parsed.role] = key
        layer.tensors[parsed.role] = tensor
    return layers


def _update(layer: _Layer, shape: tuple[int, ...], path: str, options: Options | None) -> LowRank:
    """A layer's update, of the shape of its weight. Raises InputError."""
    for role in ("down", "up"):
        if role not in layer.tensors:
            found = next(iter(layer.keys.values()))
            raise InputError(f"{found} has no {role} matrix beside it, wanted both")
    down, up = layer.tensors["down"], layer.tensors["up"]
    for role, tensor in layer.tensors.items():
        if not np.isfinite(tensor).all():
            raise InputError(f"{layer.keys[role]} has values that are not finite: the file is damaged")
    rank = down.shape[0] if down.ndim else 0
    if rank < 1 or up.ndim < 2 or up.shape[1] != rank:
        raise InputError(
            f"{layer.keys['down']} has shape {list(down.shape)} and {layer.keys['up']} {list(up.shape)}:"
            " wanted [rank, in] and [out, rank]"
        )
    # A convolution of one tap may come as a matrix and the other way round; other axes must be the weight's.
    inner = shape[1:] if math.prod(shape[2:]) > 1 else shape[1:2]
    given = down.shape[1:] if math.prod(down.shape[2:]) > 1 else down.shape[1:2]
    if given != inner or up.shape[0] != shape[0] or math.prod(up.shape[2:]) != 1:
        raise InputError(
            f"{layer.keys['down']} has shape {list(down.shape)} and {layer.keys['up']} {list(up.shape)},"
            f" which do not fit the layer's weight {list(shape)}: the LoRA is for another model"
        )
    scale = 1.0 if options is None else options.scale(path, rank)
    if "alpha" in layer.tensors:
        alpha = layer.tensors["alpha"]
        if alpha.size != 1:
            raise InputError(f"{layer.keys['alpha']} has shape {list(alpha.shape)}: wanted one number")
        if alpha.reshape(()) == 0:
            raise InputError(
                f"{layer.keys['alpha']} is 0: kohya's scripts mean the rank, others no effect; write which"
            )
        scale = float(alpha.reshape(())) / rank
    return LowRank(
        np.ascontiguousarray(down.reshape(rank, *shape[1:])),
        np.ascontiguousarray(up.reshape(shape[0], rank)),
        scale,
    )
